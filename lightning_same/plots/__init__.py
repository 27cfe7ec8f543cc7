"""Figures of finished or running runs, from their logged metrics, and the palette that all figures share.

Importing the package, or its `palette`, loads neither Matplotlib nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_same.plots.comparison import draw_metric
    from lightning_same.plots.effects import draw_effects
    from lightning_same.plots.fractions import draw_fractions, draw_shares
    from lightning_same.plots.heat_maps import draw_groups, draw_layers
    from lightning_same.plots.metrics import read_metrics
    from lightning_same.plots.norms import draw_norms
    from lightning_same.plots.sharpness import draw_sharpness

__all__ = [
    "draw_effects",
    "draw_fractions",
    "draw_groups",
    "draw_layers",
    "draw_metric",
    "draw_norms",
    "draw_shares",
    "draw_sharpness",
    "read_metrics",
]

MODULES = {
    "draw_effects": "effects",
    "draw_fractions": "fractions",
    "draw_groups": "heat_maps",
    "draw_layers": "heat_maps",
    "draw_metric": "comparison",
    "draw_norms": "norms",
    "draw_shares": "fractions",
    "draw_sharpness": "sharpness",
    "read_metrics": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Pictures need {error.name}: pip install 'lightning-same[plots]'.", name=error.name
        ) from error
