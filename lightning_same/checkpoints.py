"""The four checkpoints: an elementwise split of SAM's gradient s against the base gradient g."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.foreach import joined, pieces
from lightning_same.sharding import sum_over_shards

CKPTS = (1, 2, 3, 4)


class CheckpointFractions(NamedTuple):
    """Shares of all elements, each a float64 scalar tensor on the gradients' device; the five sum to 1.

    Attributes:
        ckpt1: r > 1: the perturbed gradient points the same way and is larger.
        ckpt2: 0 < r < 1: the same way and smaller.
        ckpt3: r < -1: the other way and larger.
        ckpt4: -1 < r < 0: the other way and smaller.
        rest: no group: g = 0, s = 0, abs(s) = abs(g), or not a number.
    """

    ckpt1: Tensor
    ckpt2: Tensor
    ckpt3: Tensor
    ckpt4: Tensor
    rest: Tensor


def split(grad: Tensor, perturbed_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The four checkpoints as masks.

    With r = s/g, the groups are r > 1, 0 < r < 1, r < -1 and -1 < r < 0. Nothing is divided: q = s * sign(g) is s
    measured along g, and r > 1 is q > \|g\|, and so on. A g near 0 makes no inf, no NaN and no flipped sign. Elements
    with g = 0, s = 0, \|s\| = \|g\| or a NaN are in no group.

    Args:
        grad: g, any shape.
        perturbed_grad: s, the same shape.

    Returns:
        Boolean masks of ckpt1, ckpt2, ckpt3, ckpt4, which never overlap.
    """
    along = perturbed_grad * grad.sign()
    size = grad.abs()
    return (
        along > size,
        (along > 0) & (along < size),
        along < -size,
        (along < 0) & (along > -size),
    )


@torch.no_grad()
def checkpoint_fractions(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> CheckpointFractions:
    """Share of the elements in each checkpoint, over all tensors together.

    The counts stay on the device: nothing waits for the accelerator.

    Args:
        grads: g, one tensor per parameter.
        perturbed_grads: s, the same shapes.

    Returns:
        The five shares.

    Raises:
        ValueError: if the lists are empty or do not match.
    """
    if len(grads) != len(perturbed_grads):
        raise ValueError(
            f"`grads` and `perturbed_grads` must hold one tensor per parameter each, got {len(grads)} and"
            f" {len(perturbed_grads)}."
        )
    for g, s in zip(grads, perturbed_grads, strict=True):
        if g.shape != s.shape:
            raise ValueError(
                "`grads` and `perturbed_grads` must have the same shapes in the same order, got"
                f" {tuple(g.shape)} against {tuple(s.shape)}."
            )
    total = sum(grad.numel() for grad in grads)
    if total == 0:
        raise ValueError("`grads` holds no element, so there is nothing to take fractions of.")
    device = grads[0].device
    counts = sum_over_shards(_counts, grads, perturbed_grads)
    counts = torch.cat([counts, total - counts.sum(dim=0, keepdim=True)])
    # Apple's MPS has no float64.
    shares = counts.to(torch.float32 if device.type == "mps" else torch.float64) / total
    return CheckpointFractions._make(shares.unbind())


def _counts(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """How many elements each checkpoint has."""
    device = grads[0].device
    counts = torch.zeros(4, dtype=torch.int64, device=device)
    for some_grads, some_perturbed in pieces(grads, perturbed_grads):
        masks = split(joined(some_grads), joined(some_perturbed))
        counts += torch.stack([torch.count_nonzero(mask) for mask in masks]).to(device)
    return counts
