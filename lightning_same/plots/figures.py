"""Which figures show what the monitors log."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from lightning_same.plots.comparison import Runs
from lightning_same.plots.effects import TITLES as EFFECTS
from lightning_same.plots.effects import draw_effects
from lightning_same.plots.fractions import SHARES, draw_fractions, draw_shares
from lightning_same.plots.heat_maps import draw_groups, draw_layers
from lightning_same.plots.norms import NORMS, draw_norms
from lightning_same.plots.sharpness import TITLES as SHARPNESS
from lightning_same.plots.sharpness import draw_sharpness


class Monitored(NamedTuple):
    """A figure of what a monitor logs.

    Attributes:
        draw: draws it; raises KeyError where nothing of it has been logged.
        keys: that it shows; of figures by layer, those of the same monitors.
        monitor: the callback to be named where it is missing; empty where an option of a callback logs it.
    """

    draw: Callable[[Runs], Figure]
    keys: Sequence[str]
    monitor: str = ""


FRACTIONS = [f"ckpt_fraction/{name}" for name in SHARES]

MONITORED = {
    "fractions": Monitored(draw_fractions, FRACTIONS, "CheckpointFractionMonitor"),
    "norms": Monitored(draw_norms, list(NORMS), "GradientNormMonitor"),
    "shares": Monitored(draw_shares, [f"grad_share/{name}" for name in SHARES]),
    "layers": Monitored(draw_layers, [*FRACTIONS, *NORMS]),
    "groups": Monitored(draw_groups, [*FRACTIONS, *NORMS]),
    "sharpness": Monitored(draw_sharpness, list(SHARPNESS), "SharpnessMonitor"),
    "effects": Monitored(draw_effects, list(EFFECTS)),
}
"""The figures by their names, in which files are named too."""
