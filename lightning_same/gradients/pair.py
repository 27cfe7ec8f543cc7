"""The two gradients of one step, as they are handed to the code that measures them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class TwoGradients(NamedTuple):
    """The gradients at w and at w + e, aligned with the parameters.

    Attributes:
        params: the parameters that the optimizer steps.
        grads: g, the mean over the whole step and all processes; read only.
        perturbed_grads: s, likewise; read only.
        scale: what a loss scaler has multiplied both by, a scalar tensor; None without one.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    perturbed_grads: Sequence[Tensor]
    scale: Tensor | None = None
