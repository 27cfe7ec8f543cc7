"""Curvature of a loss along its gradient. Plain torch."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.curvature.adaptive import AdaptiveHessian
from lightning_same.curvature.float64 import Float64Error
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.lanczos import ROUNDING
from lightning_same.curvature.measure import takes_loss
from lightning_same.curvature.protocol import LossOperator
from lightning_same.curvature.vectors import dots


class GradientCurvature(NamedTuple):
    """Curvature along the gradient.

    Attributes:
        value: g'Hg / g'g, between the smallest and the largest eigenvalue; NaN where g = 0.
        grad_norm: the L2 norm of g.
        hvps: number of Hessian-vector products: 1, or 2 if rounding made float64 necessary.
        samples: number of samples that the loss is a mean over, on all processes.
        rounding: estimate of the rounding error in ``value``; NaN if the loss cannot be computed in float64.
    """

    value: float
    grad_norm: float
    hvps: int
    samples: int
    rounding: float


@takes_loss
def gradient_curvature(hessian: LossOperator, *, tolerance: float = 2e-3) -> GradientCurvature:
    r"""The curvature that a gradient step meets: g'Hg / g'g.

    Along the step -lr * g the loss changes by lr * g'g * (lr * value / 2 - 1) to second order: it grows once value
    exceeds 2 / lr.

    Costs a gradient and a product. Unless the loss is in float64, it costs a gradient in float64 too, which shows the
    rounding error: late in training with cross-entropy, g in float32 consists of rounding errors.

    Args:
        hessian: a `Hessian` or another `LossOperator`; or in its place the arguments of `Hessian`, as in
            ``gradient_curvature(loss_fn, params, batches, samples=..., reduce=..., dtype=...)``.
        tolerance: accepted rounding error, relative to the value; > 0. If the error is larger there is a warning, or
            with ``dtype="auto"`` a measurement in float64.

    Returns:
        The curvature and the gradient's norm.

    Raises:
        ValueError: if ``tolerance`` is out of range.
        TypeError: if ``hessian`` is neither an operator nor a loss with its parameters.

    Examples:
        The loss (w_1^2 + 3 w_2^2) / 2 at w = (1, 1) has g = (1, 3) and H = diag(1, 3), so g'Hg / g'g = 28 / 10:

        >>> import torch
        >>> w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> along = gradient_curvature(lambda: (w[0] ** 2 + 3 * w[1] ** 2) / 2, [w])
        >>> round(along.value, 9), round(along.grad_norm**2, 9)
        (2.8, 10.0)
    """
    if not tolerance > 0:
        raise ValueError(f"gradient_curvature: `tolerance` must be > 0, got {tolerance!r}.")
    gradient = hessian.gradient()
    product = hessian @ gradient
    scalars = torch.cat([dots([gradient, product], gradient), dots([product], product)])
    squared, curved, product_squared = hessian.mean_over_processes(scalars).tolist()
    if not squared:
        return GradientCurvature(math.nan, 0.0, 1, hessian.samples, math.nan)
    value = curved / squared
    # To first order a change dg of g changes g'Hg / g'g by 2 (Hg - value g)'dg / g'g; and H, from the same activations,
    # has about the relative error of g.
    across = math.sqrt(max(0.0, product_squared / squared - value * value))
    rounding = _relative_rounding(hessian, gradient) * (2 * across + abs(value))
    if rounding > tolerance * abs(value):
        finer = getattr(hessian, "finer", None)  # In float64 the gradient has been had already.
        if finer is not None:
            along: GradientCurvature = gradient_curvature(finer, tolerance=tolerance)
            return along._replace(hvps=1 + along.hvps)
        warnings.warn(
            f"gradient_curvature: the value is {value:.4g}, and its error by rounding may be {rounding:.2g}. Measure"
            ' with `dtype="float64"`, or "auto".',
            stacklevel=3,
        )
    return GradientCurvature(value, math.sqrt(squared), 1, hessian.samples, rounding)


def _relative_rounding(hessian: LossOperator, gradient: Tensor) -> float:
    """The relative error of a gradient by rounding; NaN if it is not known."""
    if gradient.dtype == torch.float64:
        return ROUNDING * torch.finfo(torch.float64).eps
    if not isinstance(hessian, Hessian | AdaptiveHessian):
        return math.nan
    try:
        _, exact = hessian.in_float64().loss_and_gradient()
    except Float64Error:
        return math.nan
    relative = (gradient - exact).norm() / gradient.norm()
    return float(hessian.mean_over_processes(relative.reshape(1)))
