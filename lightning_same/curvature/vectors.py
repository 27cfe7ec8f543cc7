"""Inner products of long flat vectors, and the mean of a few numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.gradients.pieces import ACCELERATOR_PIECE, PIECE


def scalar_dtype(device: torch.device) -> torch.dtype:
    """The dtype of scalars: float64, which Apple's MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def dots(vectors: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Inner products in float64, without a host sync and without a float64 copy of the vectors.

    Args:
        vectors: k flat tensors of n elements.
        vector: another one.

    Returns:
        A tensor of k inner products on the same device.
    """
    dtype = scalar_dtype(vector.device)
    total = torch.zeros(len(vectors), dtype=dtype, device=vector.device)
    width = (PIECE if vector.device.type == "cpu" else ACCELERATOR_PIECE) // len(vectors)
    for start in range(0, vector.numel(), width):
        cut = slice(start, start + width)
        total += torch.stack([other[cut] for other in vectors]).to(dtype) @ vector[cut].to(dtype)
    return total


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of the angle between two flat vectors, from -1 to 1; NaN where one of them is zero."""
    other = other.to(one)
    (squared, product), (square,) = dots([one, other], one), dots([other], other)
    # The product of the squares would underflow before the vectors do.
    found: Tensor = product / squared.sqrt() / square.sqrt()
    return found.clamp(-1, 1)


class Mean(NamedTuple):
    """A mean with its confidence interval."""

    value: float
    low: float
    high: float
    standard_error: float


def mean_with_interval(numbers: Tensor, confidence: float) -> Mean:
    """The mean of independent numbers, with the interval that Student's t gives.

    Args:
        numbers: shape (k,), k >= 2.
        confidence: probability that the interval holds the expected value.
    """
    from scipy.special import stdtrit  # Here, for it takes 0.3 s to import.

    value, error = numbers.mean().item(), numbers.std().item() / math.sqrt(len(numbers))
    margin = float(stdtrit(len(numbers) - 1, 0.5 + confidence / 2)) * error
    return Mean(value, value - margin, value + margin, error)
