"""Figures of finished or running runs, from their logged metrics, and the palette that all figures share.

Importing the package, or its `palette`, loads neither Matplotlib nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_same.plots.figures import draw_effects, draw_fractions, draw_metric, draw_norms, draw_sharpness
    from lightning_same.plots.metrics import read_metrics

__all__ = ["draw_effects", "draw_fractions", "draw_metric", "draw_norms", "draw_sharpness", "read_metrics"]

MODULES = {
    "draw_effects": "figures",
    "draw_fractions": "figures",
    "draw_metric": "figures",
    "draw_norms": "figures",
    "draw_sharpness": "figures",
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
