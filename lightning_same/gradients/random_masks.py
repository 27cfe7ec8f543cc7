"""Random sets of elements that are as large as a checkpoint."""

import random
from typing import Literal

import torch
from torch import Tensor

from lightning_same.gradients.checkpoints import indicator
from lightning_same.gradients.tensors import at_least_float32

Match = Literal["count", "norm"]


def in_ckpt(ckpt: int, g: Tensor, s: Tensor) -> Tensor:
    """1 where an element is in the checkpoint and 0 elsewhere, in at least float32."""
    dtype = at_least_float32(s)
    return indicator(ckpt, g.sign().mul_(s).to(dtype), g.abs().to(dtype))


def draws_of(seed: int, step: int) -> torch.Generator:
    """Random numbers that depend on a seed and a step alone, the same on every process; no random state is moved."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{step}").getrandbits(63))


def random_mask(g: Tensor, s: Tensor, ckpt: int, match: Match, draws: torch.Generator) -> Tensor:
    """A random set of the elements with s != 0 that is as large as a checkpoint.

    Args:
        g: the base gradient, of shape (n,).
        s: the perturbed gradient, likewise.
        ckpt: the checkpoint, 1 to 4.
        match: ``"count"`` for as many elements; ``"norm"`` for as large a sum of s^2, up to one element.
        draws: a generator on the CPU: those of other devices draw other numbers.

    Returns:
        Booleans of shape (n,). Nothing waits for the accelerator.
    """
    dtype = torch.float32 if s.device.type == "mps" else torch.float64
    order = torch.randperm(len(s), generator=draws).to(s.device)
    size = (s != 0).to(dtype) if match == "count" else s.to(dtype).square()
    wanted = torch.dot(in_ckpt(ckpt, g, s).to(dtype), size)
    size = size[order]
    # An element belongs to the set if more than half of it fits: the nearest sum, and the exact count.
    chosen = (size > 0) & (size.cumsum(0) - size / 2 < wanted)
    return torch.zeros_like(chosen).scatter_(0, order, chosen)
