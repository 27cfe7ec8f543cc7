r"""Curvature of a loss along its sharpest direction. Plain torch.

A measure takes a `Hessian`, or in its place the loss, the parameters and, optionally, batches::

    top = top_eigenvalue(Hessian(lambda: criterion(model(x), y), model))
    top = top_eigenvalue(lambda: criterion(model(x), y), model)
    top = top_eigenvalue(lambda batch: criterion(model(batch[0]), batch[1]), model, batches)

Curvature has the units of the loss over those of the weights squared. Start vectors come from a generator of their own,
seeded by ``seed`` and on the CPU: the same call gives the same result, and the global random state is untouched.
"""

import contextlib
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.curvature.float64 import Float64Error
from lightning_same.curvature.lanczos import Lanczos
from lightning_same.curvature.measure import takes_loss
from lightning_same.curvature.protocol import Operator

LEAST_PRODUCTS = 4
"""A random start hardly contains the top eigenvector. Where most eigenvalues are nearly equal, as with an L2 penalty in
the loss, the first residuals are small around that bulk; a few products bring out an eigenvalue above it."""

FAILURE = 0.01
"""Probability that an eigenvalue lies above ``upper``, or one below ``lower``."""

ASYMMETRIC = 1e-6
"""More than rounding in float64 makes of a Hessian, relative to its top eigenvalue, down to losses of 1e-8."""

WARM_LEAD = 4.0
"""How far ahead of other directions a warm start has the last eigenvector, in standard deviations of a random start.

Started on that eigenvector itself, Lanczos gets a small residual at once, even if another eigenvalue has overtaken its
own. With this lead the other comes out as in a cold start, and a product or two are saved."""


class TopEigenvalue(NamedTuple):
    """Both ends of the Hessian's spectrum.

    Attributes:
        value: the largest Ritz value: a lower bound on the largest eigenvalue, to rounding; NaN if a product was not
            finite.
        bottom: the smallest Ritz value: an upper bound on the smallest eigenvalue. It may be far above it, unless
            ``both_ends`` was set: see ``bottom_residual``.
        residual: norm of H x - value * x for the unit Ritz vector x. An eigenvalue lies within this distance of
            ``value``. Where the top eigenvalue is isolated, the error is of the order of residual^2 over the distance
            to the next, and of ``rounding``, which the residual includes.
        hvps: number of Hessian-vector products.
        converged: whether ``residual`` met the tolerance, with ``both_ends`` also ``bottom_residual``, and with
            ``confident`` also ``upper`` (and ``lower``).
        samples: number of samples that the loss is a mean over, on all processes.
        bottom_residual: as ``residual``, for ``bottom``.
        vector: shape (size,): the unit Ritz vector of ``value``; all parameters end to end, in their order.
        rounding: estimate of the rounding error in ``value`` and ``bottom``.
        upper: with a probability of 99% over start vectors, no eigenvalue is larger. So ``value`` is at most
            ``upper - value`` below the top eigenvalue.
        lower: with a probability of 99% no eigenvalue is smaller.
    """

    value: float
    bottom: float
    residual: float
    hvps: int
    converged: bool
    samples: int
    bottom_residual: float
    vector: Tensor
    rounding: float
    upper: float
    lower: float


@takes_loss
def top_eigenvalue(
    hessian: Operator,
    *,
    tolerance: float = 2e-3,
    both_ends: bool = False,
    max_products: int = 32,
    seed: int = 0,
    start: Tensor | None = None,
    confident: bool = False,
) -> TopEigenvalue:
    r"""The largest eigenvalue of the Hessian, and the smallest, by Lanczos with full reorthogonalisation.

    Stops as soon as the residual of the largest Ritz value is at most ``tolerance`` times that value. The residual
    bounds the distance to an eigenvalue. A small change between iterations does not: in power iteration the change is
    also small while the value creeps. The relative error of an isolated top eigenvalue is then about 1e-5; in a dense
    cluster it is of the order of the tolerance.

    Costs 6 to 12 products for a usual network, up to 20 before training. A product costs about 2.6 forward-backward
    passes for one batch and 3.4 for several, one host sync, and a flat vector that is kept until the end. On several
    processes two scalars are reduced with each product, so that all processes stop together and return the same values.

    Args:
        hessian: a `Hessian` or another `Operator`; or in its place the arguments of `Hessian`, as in
            ``top_eigenvalue(loss_fn, params, batches, samples=..., reduce=..., dtype=...)``.
        tolerance: accepted residual, relative to the value; > 0. The residual includes the estimated rounding error:
            where that is larger, ``converged`` is False, and ``Hessian(..., dtype="float64")`` or "auto" helps.
        both_ends: whether to go on until the smallest eigenvalue has converged too, relative to itself. In a trained
            network it is small and lies close to the bulk, which takes 2 to 7 times as many products: raise
            ``max_products``.
        max_products: the largest number of products; >= 1.
        seed: of the start vector; the same on all processes.
        start: the ``vector`` of an earlier measurement, to follow the eigenvalue through training, which saves a
            product or two. It is added to the random start with a small weight, so that another eigenvalue is found if
            that has become the largest. Give each call another ``seed``. Default: start at random.
        confident: whether to go on until ``upper`` is within the tolerance too, and with ``both_ends`` also ``lower``.
            The residual says that an eigenvalue is near, but not that it is the largest. Takes 2 to 4 more products for
            an isolated eigenvalue, and more with a dense bulk close below.

    Returns:
        The result. If ``converged`` is False, a warning is given too.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if ``hessian`` is neither an operator nor a loss with its parameters.

    Examples:
        A quadratic with the eigenvalues 1, 2 and 5:

        >>> import torch
        >>> w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        >>> curvatures = torch.tensor([1.0, 2.0, 5.0])
        >>> top = top_eigenvalue(lambda: 0.5 * (curvatures * w**2).sum(), [w])
        >>> round(top.value, 9), round(top.bottom, 9), top.converged
        (5.0, 1.0, True)
        >>> top.vector.abs().round(decimals=6)
        tensor([0., 0., 1.], dtype=torch.float64)

    References:
        Lanczos, An Iteration Method for the Solution of the Eigenvalue Problem, 1950; the residual bound: Parlett, The
        Symmetric Eigenvalue Problem, theorem 4.5.1; ``upper`` and ``lower``: see `Lanczos.bounds`.
    """
    if not tolerance > 0:
        raise ValueError(f"top_eigenvalue: `tolerance` must be > 0, got {tolerance!r}.")
    if max_products < 1:
        raise ValueError(f"top_eigenvalue: `max_products` must be >= 1, got {max_products!r}.")
    top = extreme_eigenvalues(hessian, tolerance, both_ends, max_products, seed, start, confident)
    if not top.converged:
        warnings.warn(f"top_eigenvalue: {reason(top, tolerance)}", stacklevel=3)
    return top


def reason(top: TopEigenvalue, tolerance: float) -> str:
    """Why a result has not converged, and the way out."""
    if math.isnan(top.value):
        return "the loss or a Hessian-vector product is not finite."
    state = (
        f"not converged to {tolerance:g} after {top.hvps} products: top {top.value:.4g} with a residual of"
        f" {top.residual:.2g} and an upper bound of {top.upper:.4g}, bottom {top.bottom:.4g} with"
        f" {top.bottom_residual:.2g}."
    )
    if top.rounding > max(tolerance, ASYMMETRIC) * abs(top.value) and top.vector.dtype == torch.float64:
        return (
            f"{state} Products are asymmetric by about {top.rounding:.2g}, in float64: the second derivative of an"
            " operation is wrong, such as that of torch._weight_norm in torch 2.14. torch.autograd.gradgradcheck tells."
        )
    if top.rounding > tolerance * abs(top.value):
        return f'{state} The error by rounding may be {top.rounding:.2g}: measure with `dtype="float64"`, or "auto".'
    return f"{state} Raise `max_products`."


def extreme_eigenvalues(
    hessian: Operator,
    tolerance: float,
    both_ends: bool,
    max_products: int,
    seed: int,
    start: Tensor | None = None,
    confident: bool = False,
) -> TopEigenvalue:
    """`top_eigenvalue` without its warnings."""
    if start is not None and start.shape != (hessian.size,):
        raise ValueError(f"top_eigenvalue: `start` must have shape ({hessian.size},), got {tuple(start.shape)}.")
    first = torch.randn(hessian.size, generator=torch.Generator().manual_seed(seed)).to(hessian.device, hessian.dtype)
    if start is not None and 0 < (norm := start.norm().item()) < math.inf:
        first.add_(start.to(first), alpha=WARM_LEAD / norm)
    lanczos, met = Lanczos(hessian.__matmul__, first, hessian.mean_over_processes), False
    while not (met or lanczos.exhausted or len(lanczos.basis) == max_products):
        lanczos.step()
        if not lanczos.finite:
            break
        values, residuals, coordinates = lanczos.ritz()
        (bottom, value), (bottom_residual, residual) = values[[0, -1]].tolist(), residuals[[0, -1]].tolist()
        errors = [(value, residual)] + [(bottom, bottom_residual)] * both_ends
        if confident:
            lower, upper = lanczos.bounds(FAILURE)
            errors += [(value, upper - value)] + [(bottom, bottom - lower)] * both_ends
        # No residual falls below rounding, however many products.
        met = all(error <= max(tolerance * abs(end), lanczos.noise) for end, error in errors)
        met &= lanczos.exhausted or len(lanczos.basis) >= LEAST_PRODUCTS
    hvps = len(lanczos.basis)
    if not lanczos.finite:
        nan, vector = math.nan, torch.full_like(first, math.nan)
        return TopEigenvalue(nan, nan, nan, hvps, False, hessian.samples, nan, vector, nan, nan, nan)
    rounding = max(lanczos.rounding, torch.finfo(first.dtype).eps * max(abs(bottom), abs(value)))
    # An eigenvalue of 0 has no relative error.
    converged = met and all(
        math.hypot(error, rounding) <= tolerance * abs(end) or abs(end) <= lanczos.noise for end, error in errors
    )
    finer = getattr(hessian, "finer", None)
    if finer is not None and (met or rounding > tolerance * abs(value)) and not converged:
        # What cannot be had in float64 remains unconverged.
        with contextlib.suppress(Float64Error):
            top = extreme_eigenvalues(finer, tolerance, both_ends, max_products, seed, start, confident)
            return top._replace(hvps=hvps + top.hvps)
    lower, upper = lanczos.bounds(FAILURE)
    return TopEigenvalue(
        value,
        bottom,
        math.hypot(residual, rounding),
        hvps,
        converged,
        hessian.samples,
        math.hypot(bottom_residual, rounding),
        lanczos.vector(coordinates[:, -1]),
        rounding,
        upper + rounding,
        lower - rounding,
    )
