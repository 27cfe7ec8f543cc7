"""Lines: what a step along each checkpoint does to clean samples, to noisy ones and on validation data, and why."""

from matplotlib.figure import Figure

from lightning_same.plots.comparison import Panels, Runs, by_name, compare, draw_panels, labelled, require
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
    "placebo: random elements of that norm(s)": {
        f"ckpt_placebo_norm/{name}/validation": style for name, style in CKPTS.items()
    },
    "share of s from noisy samples": {f"ckpt_share/{name}/noisy": CKPTS[name] for name in ("ckpt1", "ckpt2")},
    "share of elements with |g_noisy| > |g_clean|": {
        f"ckpt_dominated/{name}/noisy": style for name, style in CKPTS.items()
    },
    "amplification, sum |s| / sum |g|": labelled(
        {
            "ckpt_amplification/clean_dominated/clean": "clean, |g_clean| larger",
            "ckpt_amplification/clean_dominated/noisy": "noisy, |g_clean| larger",
            "ckpt_amplification/noisy_dominated/clean": "clean, |g_noisy| larger",
            "ckpt_amplification/noisy_dominated/noisy": "noisy, |g_noisy| larger",
        }
    ),
}
"""What `CheckpointEffectMonitor` logs. On checkpoints 3 and 4 the share is a ratio of small numbers."""

SHORT = (
    "effect, clean",
    "effect, noisy",
    "effect, validation",
    "placebo, validation",
    "noisy share of s",
    "noisy dominate",
    "|s| / |g|",
)
"""The panels' titles where each has a line for each run, and many stand side by side."""

TITLES = {
    key: f"{short}: {style.label}"
    for short, styles in zip(SHORT, PANELS.values(), strict=True)
    for key, style in styles.items()
}


def draw_effects(runs: Runs) -> Figure:
    """What a step of length one along each checkpoint does to the losses, and whose gradient is in it.

    Beside the effects on the validation loss stand those of random elements with as large a norm of s; the last panel
    shows by how much s is larger than g, of clean and of noisy samples, where either kind has the larger gradient.

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
