"""Lines: how long the gradients are and how far apart they point."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_same.plots.comparison import Panels, Runs, by_name, compare, draw_panels, labelled, require
from lightning_same.plots.fractions import KINDS
from lightning_same.plots.palette import CKPTS

GRADIENTS = {"grad_norm/base": "g, at w", "grad_norm/perturbed": "s, at w + e", "grad_norm/step": "d, the step"}
NORMS = {
    "grad_norm/base": "norm of g, at w",
    "grad_norm/perturbed": "norm of s, at w + e",
    "grad_norm/step": "norm of d, the step",
    **{f"grad_norm/{name}": f"norm of s in checkpoint {style.label}" for name, style in CKPTS.items()},
    "grad_cosine": "cosine of g and s",
    "weight_norm": "norm of the weights",
}
LOGARITHMIC = ("norm of the gradients", "norm of s in each checkpoint", "norm of s, by kind of sample")


def draw_norms(runs: Runs) -> Figure:
    """The norms of the gradients, of s in each checkpoint and of the weights, and the cosine of g and s.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs: then every norm has a panel,
            with a line for each run. What has not been logged is left out. Of a single run, those of clean and of
            noisy samples are drawn too.

    Raises:
        KeyError: names the missing keys, if all of them are missing.
        ValueError: if none of the values is finite.
    """
    tables = by_name(runs)
    require(tables, list(NORMS))
    if len(tables) > 1:
        return compare(tables, NORMS, logarithmic=[key for key in NORMS if key.startswith("grad_norm/")])
    ((name, table),) = tables.items()
    return draw_panels(table, name, _panels(table), LOGARITHMIC)


def _panels(table: pd.DataFrame) -> Panels:
    panels: Panels = {
        "norm of the gradients": labelled(GRADIENTS),
        "norm of s in each checkpoint": {f"grad_norm/{name}": style for name, style in CKPTS.items()},
        "cosine of g and s": labelled({"grad_cosine": ""}),
        "norm of the weights": labelled({"weight_norm": ""}),
    }
    by_kind = {f"grad_norm{kind}/perturbed": label for kind, label in KINDS.items()}
    if not any(key in table for kind, key in zip(KINDS, by_kind, strict=True) if kind):
        return panels
    cosines = {f"grad_cosine{kind}": label for kind, label in KINDS.items()}
    return {**panels, "cosine of g and s": labelled(cosines), "norm of s, by kind of sample": labelled(by_kind)}
