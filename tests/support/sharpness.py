"""What SharpnessMonitor logs, and the same values by other ways."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_same import SharpnessMonitor
from support.fits import RowLogger, fit

KEYS = [
    f"sharpness/{name}"
    for name in (
        "top_eigenvalue",
        "bottom_eigenvalue",
        "residual",
        "bottom_residual",
        "rounding",
        "upper_bound",
        "hvps",
        "converged",
        "ascent_gap",
        "ascent_curvature",
        "ascent_alignment",
        "two_over_lr",
    )
]


TOP, GAP = KEYS[0], "sharpness/ascent_gap"


def measured(module: Any, monitor: SharpnessMonitor, **options: Any) -> dict[int, dict[str, float]]:
    logger = RowLogger()
    fit(module, callbacks=[monitor], logger=logger, **options)
    rows = [(step, row) for step, row in logger.rows if TOP in row]
    assert all(list(row) == KEYS for _, row in rows)
    found = {step: row for step, row in rows if step is not None}
    assert len(found) == len(rows)
    return found


def exact(module: Any, batch: Sequence[Tensor]) -> Tensor:
    """Eigenvalues of the dense Hessian of the cross-entropy, in ascending order."""
    params = list(module.parameters())
    grads = torch.autograd.grad(nn.functional.cross_entropy(module(batch[0]), batch[1]), params, create_graph=True)
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    rows = torch.autograd.grad(flat, params, torch.eye(len(flat)), is_grads_batched=True)
    return torch.linalg.eigvalsh(torch.cat([row.reshape(len(flat), -1) for row in rows], 1))


def rise(module: Any, batch: Sequence[Tensor], rho: float) -> float:
    """L(w + rho g / |g|) - L(w), at weights that are changed."""

    def loss() -> Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    before, params = loss(), list(module.parameters())
    grads = torch.autograd.grad(before, params)
    length = sum(grad.square().sum() for grad in grads).sqrt()
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param.add_(grad, alpha=rho / length.item())
        return (loss() - before).item()
