"""L2 norms of the two gradients, the cosine between them, and the norm of s in each checkpoint."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.gradients.checkpoints import CheckpointFractions, check_aligned, compared
from lightning_same.gradients.pieces import joined, pieces
from lightning_same.gradients.sharding import sum_over_shards
from lightning_same.gradients.tensors import at_least_float32, inverse


class GradientNorms(NamedTuple):
    """L2 norms over all elements and a cosine, each a scalar tensor on the gradients' device.

    Attributes:
        base: ||g||.
        perturbed: ||s||.
        ckpt1: ||s|| over the elements of checkpoint 1. Its square, those of the other three and that of the rest sum to
            the square of ``perturbed``.
        ckpt2: ||s|| over those of checkpoint 2.
        ckpt3: ||s|| over those of checkpoint 3.
        ckpt4: ||s|| over those of checkpoint 4.
        cosine: g . s / (||g|| ||s||), from -1 to 1; 0 where one of them is zero.
    """

    base: Tensor
    perturbed: Tensor
    ckpt1: Tensor
    ckpt2: Tensor
    ckpt3: Tensor
    ckpt4: Tensor
    cosine: Tensor


@torch.no_grad()
def gradient_norms(
    grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], scale: Tensor | None = None
) -> GradientNorms:
    """Norms of the two gradients, over all tensors together.

    Reads each list once; the host does not wait for the device.

    Args:
        grads: g, one tensor per parameter. Sharded tensors count as a whole.
        perturbed_grads: s, the same shapes.
        scale: what a loss scaler has multiplied both by, a scalar tensor; divided out of the norms.

    Returns:
        The norms and the cosine, in at least float32.

    Raises:
        ValueError: if the lists are empty or do not match.

    Example:
        >>> norms = gradient_norms([torch.tensor([3.0, 4.0])], [torch.tensor([6.0, 0.0])])
        >>> norms.base.item(), norms.perturbed.item(), norms.ckpt1.item(), round(norms.cosine.item(), 6)
        (5.0, 6.0, 6.0, 0.6)
    """
    return norms_of(sums_of_squares(grads, perturbed_grads), scale)


def norms_of(sums: Tensor, scale: Tensor | None = None) -> GradientNorms:
    """The norms that belong to `sums_of_squares`.

    Args:
        sums: shape (7,), as `sums_of_squares` returns them.
        scale: what a loss scaler has multiplied both gradients by, a scalar tensor; divided out of the norms.

    Returns:
        The norms and the cosine, in the dtype of ``sums``.
    """
    *squares, product = sums.unbind()
    base, perturbed, *by_ckpt = (square.sqrt() for square in squares)
    # Rounding may lead past 1.
    cosine = (product * inverse(base) * inverse(perturbed)).clamp(-1, 1)
    norms = [base, perturbed, *by_ckpt]
    if scale is not None:
        norms = [norm / scale for norm in norms]
    return GradientNorms._make([*norms, cosine])


def squared_shares(sums: Tensor) -> CheckpointFractions:
    """The share of ||s||^2 in each checkpoint, which weighs an element by what it adds to the step.

    Args:
        sums: shape (7,), as `sums_of_squares` returns them.

    Returns:
        The shares of the checkpoints and of the rest, which sum to 1; all of it is rest where s = 0.

    Example:
        >>> sums = sums_of_squares([torch.tensor([1.0, 1.0, 0.0])], [torch.tensor([3.0, -0.5, 0.0])])
        >>> [round(share.item(), 4) for share in squared_shares(sums)]
        [0.973, 0.0, 0.0, 0.027, 0.0]
    """
    by_ckpt = sums[2:6] * inverse(sums[1])
    return CheckpointFractions._make([*by_ckpt.unbind(), (1 - by_ckpt.sum()).clamp(min=0)])


@torch.no_grad()
def sums_of_squares(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """The sums that the norms are roots of; sums of several calls may be added.

    Reads each list once; the host does not wait for the device.

    Args:
        grads: g, one tensor per parameter. Sharded tensors count as a whole.
        perturbed_grads: s, the same shapes.

    Returns:
        Shape (7,), on the device of the first tensor: of g^2, of s^2, of s^2 in each checkpoint, and of g * s. Summed
        in at least float32 within a piece, and in float64 over the pieces (float32 on Apple's MPS).

    Raises:
        ValueError: if the lists are empty or do not match.

    Example:
        >>> sums_of_squares([torch.tensor([3.0, 4.0])], [torch.tensor([6.0, -1.0])])
        tensor([25., 37., 36.,  0.,  0.,  1., 14.], dtype=torch.float64)
    """
    check_aligned(grads, perturbed_grads)
    return sum_over_shards(_sums_of_squares, grads, perturbed_grads)


def _sums_of_squares(grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    device = grads[0].device
    total = torch.float32 if device.type == "mps" else torch.float64
    sums = [torch.zeros(7, dtype=total, device=device)]
    for some_grads, some_perturbed in pieces(grads, perturbed_grads):
        g, s = joined(some_grads).flatten(), joined(some_perturbed).flatten()
        g, s = g.to(at_least_float32(g)), s.to(at_least_float32(s))
        # Infinity times a mask of 0 would be NaN; the largest number gives 0 there, and is still infinite when it is
        # squared.
        largest = min(torch.finfo(g.dtype).max, torch.finfo(s.dtype).max)
        size, along = g.abs().clamp_(max=largest), s.clamp(-largest, largest).mul_(g.sign())
        larger, smaller = (mask.mul_(along) for mask in compared(along.abs(), size))
        piece = [
            torch.dot(g, g),
            torch.dot(s, s),
            *(torch.dot(part, part) for part in (larger.clamp(min=0), smaller.clamp(min=0))),
            *(torch.dot(part, part) for part in (larger.clamp_(max=0), smaller.clamp_(max=0))),
            torch.dot(g, s),
        ]
        sums.append(torch.stack(piece).to(device, total))
    return torch.stack(sums).sum(dim=0)
