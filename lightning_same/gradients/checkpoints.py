"""The four checkpoints: an elementwise split of SAM's gradient s by its ratio to the base gradient g."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.gradients.pieces import joined, pieces
from lightning_same.gradients.sharding import sum_over_shards
from lightning_same.gradients.tensors import at_least_float32

CKPTS = (1, 2, 3, 4)

EXACT = 1 << 24
"""Up to this number float32 counts without rounding."""

RATIO_EDGES = (1.0, 1.2, 1.5, 2.0, 4.0, 8.0, 16.0, math.inf)
"""Edges of the histogram bins for the size of the ratio."""


class CheckpointFractions(NamedTuple):
    """Fraction of all elements in each checkpoint. The five values sum to 1.

    Each is a scalar tensor on the gradients' device, in float64 (float32 on Apple's MPS). r is the ratio s/g.

    Attributes:
        ckpt1: r > 1: s has g's sign and is larger.
        ckpt2: 0 < r < 1: s has g's sign and is smaller.
        ckpt3: r < -1: s has the opposite sign and is larger.
        ckpt4: -1 < r < 0: s has the opposite sign and is smaller.
        rest: in no checkpoint: g = 0, s = 0, |s| = |g|, or one of them is NaN.
    """

    ckpt1: Tensor
    ckpt2: Tensor
    ckpt3: Tensor
    ckpt4: Tensor
    rest: Tensor


def split(grad: Tensor, perturbed_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four checkpoints as masks.

    With r = s/g, they are r > 1, 0 < r < 1, r < -1 and -1 < r < 0. Nothing is divided: s * sign(g) > |g| is r > 1, and
    so on. A g near 0 makes no inf, no NaN and no flipped sign.

    Args:
        grad: g, any shape.
        perturbed_grad: s, the same shape.

    Returns:
        Boolean masks of checkpoints 1, 2, 3 and 4. They do not overlap. Elements with g = 0, s = 0, |s| = |g| or a NaN
        are in none.

    Example:
        >>> g = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
        >>> s = torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> [mask.tolist().index(True) for mask in split(g, s)]
        [0, 1, 2, 3]
    """
    along, size = perturbed_grad * grad.sign(), grad.abs()
    ckpt1, ckpt2, ckpt3, ckpt4 = (indicator(ckpt, along, size).bool() for ckpt in CKPTS)
    return ckpt1, ckpt2, ckpt3, ckpt4


# The split is computed with numbers, by `indicator` for one checkpoint and by `compared` for all four. On a CPU that is
# three to four times as fast as with booleans. A table of gains that is indexed by a code from 0 to 4 for each element
# takes 1.3 to 3 times as long for one checkpoint, and its counts (`bincount`) make the host wait for a GPU.
def indicator(ckpt: int, along: Tensor, size: Tensor) -> Tensor:
    """One checkpoint as numbers: 1 inside, 0 elsewhere.

    Args:
        ckpt: 1 to 4.
        along: s * sign(g).
        size: |g|, of the same shape and dtype.

    Example:
        >>> indicator(2, torch.tensor([2.0, 0.5, 0.0, -0.5]), torch.ones(4))
        tensor([0., 1., 0., 0.])
    """
    # Positive in the two checkpoints whose sign is right.
    same_sign = along.clone() if ckpt in (1, 2) else along.neg()
    if ckpt in (1, 3):
        return same_sign.gt_(size)
    return same_sign.clone().gt_(0).mul_(same_sign.lt_(size))


def compared(magnitude: Tensor, size: Tensor, edge: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where |s| > edge * |g|, and where edge * |s| < |g|, as numbers: 1 there, 0 elsewhere.

    Args:
        magnitude: |s|.
        size: |g|, of the same shape and dtype.
        edge: at least 1.

    Example:
        >>> compared(torch.tensor([3.0, 1.0, 0.5]), torch.ones(3), edge=2.0)
        (tensor([1., 0., 0.]), tensor([0., 0., 0.]))
    """
    if edge == 1:
        return magnitude.clone().gt_(size), magnitude.clone().lt_(size)
    return magnitude.clone().gt_(size * edge), (magnitude * edge).lt_(size)


@torch.no_grad()
def checkpoint_fractions(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> CheckpointFractions:
    """Fraction of the elements in each checkpoint, over all tensors together.

    The counts stay on the device: the host does not wait for it. One read of both lists.

    Args:
        grads: g, one tensor per parameter. Sharded tensors count as a whole.
        perturbed_grads: s, the same shapes.

    Returns:
        The five fractions.

    Raises:
        ValueError: if the lists are empty or do not match.

    Example:
        >>> g = [torch.tensor([1.0, 1.0, 1.0, 1.0])]
        >>> s = [torch.tensor([2.0, 3.0, 0.5, 1.0])]
        >>> [fraction.item() for fraction in checkpoint_fractions(g, s)]
        [0.5, 0.25, 0.0, 0.0, 0.25]
    """
    check_aligned(grads, perturbed_grads)
    total = sum(grad.numel() for grad in grads)
    if total == 0:
        raise ValueError("`grads` holds no element, so there is nothing to take fractions of.")
    return fractions_of(checkpoint_counts(grads, perturbed_grads), total)


def fractions_of(counts: Tensor, total: int) -> CheckpointFractions:
    """The fractions that belong to counts.

    Args:
        counts: elements in each checkpoint, shape (4,).
        total: number of all elements.
    """
    counts = torch.cat([counts, total - counts.sum(dim=0, keepdim=True)])
    return CheckpointFractions._make(shares(counts, total).unbind())


def shares(counts: Tensor, total: int) -> Tensor:
    """Counts over a total, in float64; in float32 on Apple's MPS, which has no float64."""
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

    Example:
        >>> checkpoint_counts([torch.tensor([1.0, 1.0, -1.0])], [torch.tensor([2.0, -0.5, -3.0])])
        tensor([2, 0, 0, 1])
    """
    check_aligned(grads, perturbed_grads)
    return sum_over_shards(partial(_counts_beyond, (1.0,)), grads, perturbed_grads)[0]


@torch.no_grad()
def ratio_counts(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """Histogram of the size of the ratio r = s/g within each checkpoint, over all tensors together.

    The size is |r| in checkpoints 1 and 3, and 1/|r| in 2 and 4, so that it is above 1 in all of them: equal steps of
    its logarithm, up or down, fall into equal bins. The bins are those between `RATIO_EDGES`, without the lower edge
    and with the upper. Nothing is divided, as in `split`.

    Args:
        grads: g.
        perturbed_grads: s, the same shapes.

    Returns:
        int64 of shape (4, 7), on the device: a row for each checkpoint, which sums to its count.

    Raises:
        ValueError: if the lists are empty or do not match.

    Example:
        >>> ratio_counts([torch.ones(3)], [torch.tensor([1.1, 3.0, 0.1])])[:2]
        tensor([[1, 0, 0, 1, 0, 0, 0],
                [0, 0, 0, 0, 0, 1, 0]])
    """
    check_aligned(grads, perturbed_grads)
    beyond = sum_over_shards(partial(_counts_beyond, RATIO_EDGES[:-1]), grads, perturbed_grads)
    return (beyond - torch.cat([beyond[1:], torch.zeros_like(beyond[:1])])).T.contiguous()


def _counts_beyond(edges: Sequence[float], grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """Elements of each checkpoint whose size of the ratio is beyond each edge: int64 of shape (edges, 4)."""
    counts = torch.zeros(len(edges), 4, dtype=torch.int64, device=grads[0].device)
    for some_grads, some_perturbed in pieces(grads, perturbed_grads):
        g, s = joined(some_grads).flatten(), joined(some_perturbed).flatten()
        # In half precision the products with the edges would be too coarse.
        along, size = g.sign().mul_(s).to(at_least_float32(s)), g.abs().to(at_least_float32(s))
        for some_along, some_size in zip(torch.split(along, EXACT), torch.split(size, EXACT), strict=True):
            magnitude, sign = some_along.abs(), some_along.sign_()
            rows = []
            for edge in edges:
                larger, smaller = compared(magnitude, some_size, edge)
                # s = 0 may count as smaller, but has no sign: `sign * smaller` leaves it out of both checkpoints.
                larger_by_sign, larger_all = torch.dot(larger, sign), larger.sum()
                smaller_by_sign, smaller_all = smaller.mul_(sign).sum(), torch.dot(smaller, sign)
                rows += [larger_all + larger_by_sign, smaller_all + smaller_by_sign]
                rows += [larger_all - larger_by_sign, smaller_all - smaller_by_sign]
            counts += torch.stack(rows).div_(2).to(counts).view(-1, 4)
    return counts


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
