"""The four checkpoints: an elementwise split of SAM's gradient s against the base gradient g."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.gradients.sharding import sum_over_shards
from lightning_same.gradients.tensors import joined, pieces

CKPTS = (1, 2, 3, 4)

EXACT = 1 << 24
"""Up to this number float32 counts without rounding."""

RATIO_EDGES = (1.0, 1.2, 1.5, 2.0, 4.0, 8.0, 16.0, math.inf)
"""Between which the sizes of the ratio are counted."""


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


def indicator(ckpt: int, along: Tensor, size: Tensor) -> Tensor:
    r"""One of the masks of `split` as numbers: 1 in the checkpoint, 0 elsewhere.

    On a CPU a formula on numbers is several times as fast as one on booleans.

    Args:
        ckpt: 1 to 4.
        along: s * sign(g).
        size: \|g\|, of the same dtype.
    """
    # Measured along the way that the checkpoint's elements point: positive there.
    way = along.clone() if ckpt in (1, 2) else along.neg()
    if ckpt in (1, 3):
        return way.gt_(size)
    return way.clone().gt_(0).mul_(way.lt_(size))


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
    check_aligned(grads, perturbed_grads)
    total = sum(grad.numel() for grad in grads)
    if total == 0:
        raise ValueError("`grads` holds no element, so there is nothing to take fractions of.")
    return fractions_of(checkpoint_counts(grads, perturbed_grads), total)


def fractions_of(counts: Tensor, total: int) -> CheckpointFractions:
    """The shares that ``counts`` elements of the four checkpoints have among ``total``."""
    counts = torch.cat([counts, total - counts.sum(dim=0, keepdim=True)])
    return CheckpointFractions._make(shares(counts, total).unbind())


def shares(counts: Tensor, total: int) -> Tensor:
    """Counts over a total, in float64; in float32 on Apple's MPS, which has no other."""
    return counts.to(torch.float32 if counts.device.type == "mps" else torch.float64) / total


@torch.no_grad()
def checkpoint_counts(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """Number of elements in each checkpoint, over all tensors together; counts of several calls may be added.

    Args:
        grads: g.
        perturbed_grads: s, the same shapes.

    Returns:
        int64 of shape (4,), on the device.

    Raises:
        ValueError: if the lists are empty or do not match.
    """
    check_aligned(grads, perturbed_grads)
    return sum_over_shards(_counts, grads, perturbed_grads)


def _counts(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    counts = torch.zeros(4, dtype=torch.int64, device=grads[0].device)
    for some_grads, some_perturbed in pieces(grads, perturbed_grads):
        g, s = joined(some_grads).flatten(), joined(some_perturbed).flatten()
        along, size = g.sign().mul_(s).to(at_least_float32(s)), g.abs().to(at_least_float32(s))
        # As `split` does, by masks that are numbers: on a CPU several times as fast. Sums are exact up to 2^24.
        for way, b in zip(torch.split(along, EXACT), torch.split(size, EXACT), strict=True):
            a = way.abs()
            larger, smaller, way = a.clone().gt_(b), a.lt_(b), way.sign_()
            # What is larger than g is not 0, but what is smaller may be: then it points no way.
            larger_with, larger_all = torch.dot(larger, way), larger.sum()
            smaller_with, smaller_all = smaller.mul_(way).sum(), torch.dot(smaller, way)
            found = [larger_all + larger_with, smaller_all + smaller_with]
            found += [larger_all - larger_with, smaller_all - smaller_with]
            counts += torch.stack(found).div_(2).to(counts)
    return counts


@torch.no_grad()
def ratio_counts(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    r"""Histogram of the size of the ratio r = s/g within each checkpoint, over all tensors together.

    The size is \|r\| in checkpoints 1 and 3, and 1/\|r\| in 2 and 4, so that it is above 1 in all of them: equal
    steps of its logarithm, up or down, fall into equal bins. The bins are those between `RATIO_EDGES`, a lower edge
    excluded and an upper included. Nothing is divided, as in `split`.

    Args:
        grads: g.
        perturbed_grads: s, the same shapes.

    Returns:
        int64 of shape (4, 7), on the device: a row for each checkpoint, which sums up to its count.

    Raises:
        ValueError: if the lists are empty or do not match.
    """
    check_aligned(grads, perturbed_grads)
    return sum_over_shards(_ratio_counts, grads, perturbed_grads)


def _ratio_counts(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    beyond = torch.zeros(len(RATIO_EDGES), 4, dtype=torch.int64, device=grads[0].device)
    for some_grads, some_perturbed in pieces(grads, perturbed_grads):
        g, s = joined(some_grads), joined(some_perturbed)
        # In half precision the products with the edges would be too coarse.
        along, size = (s * g.sign()).to(at_least_float32(s)), g.abs().to(at_least_float32(g))
        with_it, against_it = along > 0, along < 0
        for edge, row in zip(RATIO_EDGES[:-1], beyond, strict=False):
            large, small = edge * size, edge * along
            masks = (along > large, with_it & (small < size), along < -large, against_it & (small > -size))
            row += torch.stack([torch.count_nonzero(mask) for mask in masks]).to(row.device)
    return (beyond[:-1] - beyond[1:]).T.contiguous()


def check_aligned(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> None:
    """Check that two lists of gradients belong together.

    Raises:
        ValueError: if they are empty or do not hold the same shapes in the same order.
    """
    if not grads and not perturbed_grads:
        raise ValueError("`grads` holds no element, so there is nothing to measure.")
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


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or float32 if that holds more."""
    return torch.promote_types(tensor.dtype, torch.float32)
