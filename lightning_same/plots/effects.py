"""Lines: what a step along each checkpoint does to clean samples, to noisy ones and on validation data."""

from matplotlib.figure import Figure

from lightning_same.plots.comparison import Panels, Runs, by_name, compare, draw_panels, require
from lightning_same.plots.palette import CKPTS

PANELS: Panels = {
    **{
        f"effect on the {of}": {f"ckpt_effect/{name}/{loss}": style for name, style in CKPTS.items()}
        for loss, of in {
            "clean": "clean samples' loss",
            "noisy": "noisy samples' loss",
            "validation": "validation loss",
        }.items()
    },
    "share of s from noisy samples": {f"ckpt_share/{name}/noisy": CKPTS[name] for name in ("ckpt1", "ckpt2")},
}
"""What `CheckpointEffectMonitor` logs. On checkpoints 3 and 4 the share is a ratio of small numbers."""

TITLES = {key: f"{title}: {style.label}" for title, styles in PANELS.items() for key, style in styles.items()}


def draw_effects(runs: Runs) -> Figure:
    """What a step of length one along each checkpoint does to the losses, and the share of s from noisy samples.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs: then every checkpoint and loss
            has a panel, with a line for each run. What has not been logged is left out.

    Raises:
        KeyError: names the missing keys, if all of them are missing.
        ValueError: if none of the values is finite.
    """
    tables = by_name(runs)
    require(tables, list(TITLES))
    if len(tables) > 1:
        return compare(tables, TITLES)
    ((name, table),) = tables.items()
    return draw_panels(table, name, PANELS)
