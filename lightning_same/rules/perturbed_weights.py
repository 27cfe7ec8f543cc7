"""Weights that are at w + e for a while, and back at w afterwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_same.gradients.pieces import by_kind


@contextmanager
def perturbed_weights(weights: Sequence[Tensor], copies: Sequence[Tensor], move: Callable[[], None]) -> Iterator[None]:
    """Hold weights at w + e inside a ``with`` block.

    On leaving, by whatever way, w is copied back bit for bit; subtracting e would not be exact.

    Args:
        weights: w, moved in place.
        copies: as many tensors of the same shapes, which receive w.
        move: adds e to the weights.
    """
    with torch.no_grad():
        kinds = by_kind(weights, copies)
        for here, saved in kinds:
            torch._foreach_copy_(saved, here)
    try:
        with torch.no_grad():
            move()
        del move  # It holds g, which is as large as the model, and the caller may be done with it.
        # Autocast keeps low-precision copies of the weights until its outermost context ends.
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            for here, saved in kinds:
                torch._foreach_copy_(here, saved)
        torch.clear_autocast_cache()
