"""Pictures of the mechanism: whom a step along each checkpoint helps, and whose gradient lies in it, over training."""

import pandas as pd
from matplotlib.ticker import PercentFormatter

from lightning_same.experiments.study.figures import Picture, line, panel
from lightning_same.plots.palette import CKPTS

EFFECTS = {
    "validation": "Effect on the validation loss",
    "noisy": "Effect on the noisy samples' loss",
}
"""What a step of length one on a checkpoint lowers, and the title of its picture."""


def mechanism_pictures(curves: pd.DataFrame) -> list[Picture]:
    """For every variant the effects on validation and on noisy samples, and the share of s that comes from these.

    Lines are means over the seeds, bands span them. Of variants without noisy samples only the first is drawn.
    """
    pictures = []
    for number, variant in enumerate(curves["variant"].unique() if "ckpt_effect/ckpt1/clean" in curves else []):
        own = curves[curves["variant"] == variant]
        noisy = own["ckpt_effect/ckpt1/noisy"].abs().max() > 0
        for loss, title in EFFECTS.items():
            if f"ckpt_effect/ckpt1/{loss}" in own and (noisy or loss != "noisy"):
                keys = {name: f"ckpt_effect/{name}/{loss}" for name in CKPTS}
                pictures.append(_over_epochs(own, keys, f"{title}: {variant}", f"mechanism-{loss}-{number}"))
        if noisy:
            keys = {name: f"ckpt_share/{name}/noisy" for name in ("ckpt1", "ckpt2")}
            title = f"Share of s from noisy samples: {variant}"
            pictures.append(_over_epochs(own, keys, title, f"mechanism-share-{number}", share=True))
    return pictures


def _over_epochs(curves: pd.DataFrame, keys: dict[str, str], title: str, name: str, share: bool = False) -> Picture:
    with panel(title, name) as (axes, found):
        for ckpt, key in keys.items():
            over = curves.dropna(subset=[key]).groupby("epoch")[key].agg(["mean", "min", "max"])
            style = CKPTS[ckpt]
            every = max(1, len(over) // 8)
            axes.plot(over.index, over["mean"], linewidth=1.4, markersize=3.5, markevery=every, **line(style))
            axes.fill_between(over.index, over["min"], over["max"], color=style.color, alpha=0.12, linewidth=0)
        axes.set_xlabel("epoch")
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.axhline(0, color="black", linewidth=0.6)
        found.caption = f"{title}, over the epochs, on each checkpoint; bands span the seeds"
    return found.picture
