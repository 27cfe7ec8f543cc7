"""Rounding to half precision that keeps small changes on average."""

import torch
from torch import Tensor


def round_stochastically(exact: Tensor, dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """Round to one of the two nearest values at random, so that the expectation is the number itself.

    Rounding to the nearest value loses a change that is smaller than half the distance between two values. Here such a
    change moves the number by a whole distance, with a probability that is their ratio. What the dtype can hold stays.

    Args:
        exact: float32 or float64, any shape.
        dtype: what it is rounded to, of less precision.
        draws: a generator on the same device.

    Example:
        >>> exact = torch.full((10_000,), 1.0 + 2.0**-10)
        >>> rounded = round_stochastically(exact, torch.bfloat16, torch.Generator().manual_seed(0))
        >>> sorted(set(rounded.tolist()))  # 1 and the next number in bfloat16
        [1.0, 1.0078125]
        >>> rounded.float().mean().sub(1).mul(2**10).round(decimals=1)  # of the nearest values it would be 0
        tensor(1.)
    """
    info = torch.finfo(dtype)
    # exact = m * 2^exponent with 1/2 <= |m| < 1, where values of the dtype lie eps / 2 * 2^exponent apart.
    _, exponent = torch.frexp(exact)
    # By one less, for in older releases of torch the power itself must be finite, and 2^128 is not in float32.
    distance = torch.ldexp(torch.full_like(exact, info.eps), exponent - 1).clamp_(min=info.tiny * info.eps)
    count = exact / distance
    below = count.floor()
    noise = torch.rand(exact.shape, generator=draws, dtype=exact.dtype, device=exact.device)
    # Compared, not added: of what the dtype can hold, the sum could be rounded up.
    above = noise < count.sub_(below)
    return below.add_(above).mul_(distance).to(dtype)
