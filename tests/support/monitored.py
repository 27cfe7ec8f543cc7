"""What the monitors of the two gradients log, and the same values in numpy."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_same import CheckpointFractionMonitor, GradientNormMonitor
from lightning_same.callbacks.gradient_monitor import GradientMonitor
from support.fits import RowLogger, fit

GROUPS = ("ckpt1", "ckpt2", "ckpt3", "ckpt4")


NORMS = [f"grad_norm/{name}" for name in ("base", "perturbed", *GROUPS)] + ["grad_cosine"]
NORMS += [f"grad_share/{name}" for name in (*GROUPS, "rest")]


STEP = ["grad_norm/step", "weight_norm"]


MONITORS = (CheckpointFractionMonitor, GradientNormMonitor)


OWN = ("ckpt_", "grad_norm", "grad_cosine", "grad_share", "weight_norm")


def rows_of(module: Any, *monitors: GradientMonitor, **options: Any) -> list[tuple[int, dict[str, float]]]:
    """The monitors' own rows, those of one step together."""
    logger = RowLogger()
    fit(module, callbacks=list(monitors), logger=logger, **options)
    rows = [(step, row) for step, row in logger.rows if any(key.startswith(OWN) for key in row)]
    steps: dict[int, dict[str, float]] = {}
    for step, row in rows:
        steps.setdefault(step, {}).update(row)
    assert all([step for step, _ in rows].count(step) <= len(monitors) for step in steps)
    return list(steps.items())


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).numpy()


def measured(params: Any, g: Any, s: Any, d: Any) -> dict[str, float]:
    """All values in numpy and float64."""
    w, g, s, d = map(flat, (params, g, s, d))
    norm = np.linalg.norm
    larger = np.abs(s) > np.abs(g)
    smaller = np.abs(s) < np.abs(g)
    masks = [(g * s > 0) & larger, (g * s > 0) & smaller, (g * s < 0) & larger, (g * s < 0) & smaller]
    shares = [norm(s[mask]) ** 2 / norm(s) ** 2 for mask in [*masks, ~np.any(masks, axis=0)]]
    values = [norm(g), norm(s), *(norm(s[mask]) for mask in masks), g @ s / (norm(g) * norm(s))]
    values += [*shares, norm(d), norm(w)]
    return dict(zip(NORMS + STEP, values, strict=True))


def class_zero(batch: Any) -> Tensor:
    return batch[1] == 0
