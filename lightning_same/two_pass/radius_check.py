"""On the first step of a fit that perturbs: whether the radius leads to where there still is a gradient."""

import warnings
from collections.abc import Sequence

from torch import Tensor

from lightning_same.gradients.tensors import all_finite
from lightning_same.rules.base import Rule


def check_radius(name: str, rule: Rule, rho: float, finite_at_w: Tensor, perturbed_grads: Sequence[Tensor]) -> None:
    """Warn if the gradient is inf or NaN at w + e, and is not at w. Waits for the device.

    Args:
        name: of the module.
        rule: the rule.
        rho: its radius at this step.
        finite_at_w: whether g is finite, a boolean scalar tensor.
        perturbed_grads: s.
    """
    finite = all_finite(perturbed_grads)
    if (finite_at_w.to(finite.device) & ~finite).item():
        warnings.warn(
            f"{name}: the gradient is finite at the weights, and inf or NaN where {rule!r} has moved them by {rho:g}."
            " So will the weights be after this step. Take a smaller radius.",
            stacklevel=2,
        )
