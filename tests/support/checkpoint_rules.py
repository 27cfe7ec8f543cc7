"""SAM, ASAM and the rules by checkpoint, with their formulas in numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_same import (
    ASAM,
    SAM,
    SAME,
    SANER,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    Rule,
    SAMDirection,
    SAMMagnitude,
)
from lightning_same.rules.perturbations import Adaptive
from lightning_same.rules.timing import Every
from support.formulas import Arrays


def ascent(weights: Arrays, grads: Arrays, radii: list[float]) -> Arrays:
    norm = np.sqrt(sum((g**2).sum() for g, rho in zip(grads, radii, strict=True) if rho))
    return [rho * g / norm for g, rho in zip(grads, radii, strict=True)]


def adaptive_ascent(eta: float) -> Callable[[Arrays, Arrays, list[float]], Arrays]:
    def e(weights: Arrays, grads: Arrays, radii: list[float]) -> Arrays:
        t = [np.abs(w) + eta for w in weights]
        norm = np.sqrt(sum(((a * g) ** 2).sum() for a, g, rho in zip(t, grads, radii, strict=True) if rho))
        return [rho * a**2 * g / norm for a, g, rho in zip(t, grads, radii, strict=True)]

    return e


def gains(*by_ckpt: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def d(g: np.ndarray, s: np.ndarray) -> np.ndarray:
        r = s / g
        a, b, c, e = by_ckpt
        return s * np.select([r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)], [a, b, c, e], 1.0)

    return d


def select(*ckpts: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def d(g: np.ndarray, s: np.ndarray) -> np.ndarray:
        r = s / g
        groups = [r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)]
        return np.where(np.any([groups[k - 1] for k in ckpts], axis=0), s, g)

    return d


CASES: dict[str, tuple[Rule, Any, Any, Callable[[int], bool]]] = {
    "SAM": (SAM(0.3), ascent, lambda g, s: s, lambda step: True),
    "ASAM": (ASAM(0.7, eta=0.1), adaptive_ascent(0.1), lambda g, s: s, lambda step: True),
    "SAME 1": (SAME(1, 2.0, 0.3), ascent, gains(2, 1, 1, 1), lambda step: True),
    "SAME 2": (SAME(2, 0.5, 0.3), ascent, gains(1, 0.5, 1, 1), lambda step: True),
    "SAME 3": (SAME(3, 3.0, 0.9), ascent, gains(1, 1, 3, 1), lambda step: True),
    "SAME 4": (SAME(4, 2.0, 0.9), ascent, gains(1, 1, 1, 2), lambda step: True),
    "SAME 13": (SAME((1, 3), 2.0, 0.9), ascent, gains(2, 1, 2, 1), lambda step: True),
    "CustomSAME": (CustomSAME(2.0, 0.9), ascent, gains(2, 1, 0.5, 2), lambda step: True),
    "SANER": (SANER(0.75, rho=0.3), ascent, gains(1, 0.25, 1, 1), lambda step: True),
    "SANER on ASAM": (
        SANER(0.75, rho=0.7, perturbation=Adaptive(0.1)),
        adaptive_ascent(0.1),
        gains(1, 0.25, 1, 1),
        lambda step: True,
    ),
    "CheckpointGains": (CheckpointGains(1.5, 0.0, -1.0, 3.0, 0.9), ascent, gains(1.5, 0, -1, 3), lambda step: True),
    "CheckpointSelect 14": (CheckpointSelect((1, 4), 0.9), ascent, select(1, 4), lambda step: True),
    "CheckpointSelect 2": (CheckpointSelect(2, 0.9), ascent, select(2), lambda step: True),
    "SAMDirection": (SAMDirection(0.9), ascent, lambda g, s: np.abs(g) * np.sign(s), lambda step: True),
    "SAMMagnitude": (SAMMagnitude(0.9), ascent, lambda g, s: np.abs(s) * np.sign(g), lambda step: True),
    "SAM every 3": (SAM(0.3, timing=Every(3)), ascent, lambda g, s: s, lambda step: step % 3 == 0),
}
