r"""How much the loss rises around the weights: at the worst point of a ball, and in the mean over a Gaussian.

At a minimum and with a small radius, the first is \(\rho^2 / 2\) times the top eigenvalue of the (adaptive) Hessian,
and the second \(\rho^2 / 2\) times its trace. With a larger radius both see what no derivative at w sees.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_same.curvature.adaptive import element_scale
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.measure import takes_loss
from lightning_same.curvature.vectors import mean_with_interval

FIRST_STEP = 2.0
"""Length of the first step of an ascent, in radii: from anywhere in the ball to anywhere else."""


class WorstCaseSharpness(NamedTuple):
    """The largest rise of the loss that was met in a ball.

    Attributes:
        value: L(w + e) - L(w): a lower bound on the largest in the ball.
        loss: L(w).
        perturbation: shape (size,): e; all parameters end to end, in their order.
        passes: forward-backward passes taken.
        samples: number of samples that the loss is a mean over, on all processes.
    """

    value: float
    loss: float
    perturbation: Tensor
    passes: int
    samples: int


class AverageCaseSharpness(NamedTuple):
    """The mean rise of the loss under random perturbations.

    Attributes:
        value: the unbiased estimate.
        low: lower end of the confidence interval.
        high: upper end of the confidence interval.
        standard_error: standard deviation of ``value``, estimated from the probes.
        loss: L(w).
        forwards: forward passes taken.
        samples: number of samples that the loss is a mean over, on all processes.
    """

    value: float
    low: float
    high: float
    standard_error: float
    loss: float
    forwards: int
    samples: int


@takes_loss
def worst_case_sharpness(
    hessian: Hessian,
    *,
    rho: float = 0.05,
    adaptive: bool = True,
    eta: float = 0.0,
    norm: Literal[2, "inf"] = 2,
    steps: int = 20,
    starts: int = 1,
    seed: int = 0,
) -> WorstCaseSharpness:
    r"""The largest L(w + e) - L(w) over a ball, by ascent.

    The ball is \|\|T^-1 e\|\| <= rho with T = diag(\|w\| + eta), or \|\|e\|\| <= rho if not ``adaptive``. With T the
    value does not change when the weights are rescaled without changing the function. The ascent begins at the point of
    SAM (of ASAM if ``adaptive``) and projects every step on the ball. A step that does not raise the loss is not taken,
    and the next one is half as long: more steps never give less. Afterwards weights, ``.grad`` and the random state are
    what they were.

    Costs 1 + starts * (1 + steps) forward-backward passes.

    Args:
        hessian: a `Hessian`, of which only the loss and its gradient are asked; or in its place the arguments of
            `Hessian`, as in ``worst_case_sharpness(loss_fn, params, batches, samples=..., reduce=..., dtype=...)``.
        rho: radius of the ball; > 0.
        adaptive: whether it is in units of the weights.
        eta: added to the size of every weight; >= 0. With 0 a weight of 0 is not perturbed. Only if ``adaptive``.
        norm: 2, or "inf" for the largest element.
        steps: of the ascent; >= 0. With 0 the value is that at the point of SAM.
        starts: number of ascents, all but the first from random points; >= 1.
        seed: of the random points; the same on all processes.

    Returns:
        The best point of all ascents.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if ``hessian`` is neither a Hessian nor a loss with its parameters.

    Examples:
        A quadratic at its minimum: the worst point of a ball of radius 1/2 is along the top eigenvector.

        >>> import torch
        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> worst = worst_case_sharpness(lambda: w[0] ** 2 + 4 * w[1] ** 2, [w], rho=0.5, adaptive=False, steps=40)
        >>> round(worst.value, 6)
        1.0

    References:
        Kwon, Kim, Park and Choi, ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
        Neural Networks, ICML 2021, arXiv:2102.11600; Andriushchenko, Croce, Müller, Hein and Flammarion, A Modern Look
        at the Relationship between Sharpness and Generalization, ICML 2023, arXiv:2302.07011.
    """
    for name, number, minimum in (("steps", steps, 0), ("starts", starts, 1)):
        if number < minimum:
            raise ValueError(f"worst_case_sharpness: `{name}` must be >= {minimum}, got {number!r}.")
    if norm not in (2, "inf"):
        raise ValueError(f'worst_case_sharpness: `norm` must be 2 or "inf", got {norm!r}.')
    scale = _checked_scale("worst_case_sharpness", hessian, rho, adaptive, eta)
    direction, project = (_unit, _onto_sphere) if norm == 2 else (torch.sign, _onto_cube)
    generator = torch.Generator().manual_seed(seed)
    loss, gradient = hessian.loss_and_gradient()
    best, best_point, passes = -math.inf, torch.zeros_like(scale), 1
    for number in range(starts):
        ascent = direction(scale * gradient)
        if number or not ascent.any():
            ascent = direction(torch.randn(hessian.size, generator=generator).to(scale))
        point, length = project(rho * ascent, rho), FIRST_STEP * rho
        value, slope = _at(hessian, scale * point)
        passes += 1
        for _ in range(steps):
            proposal = project(point + length * direction(scale * slope), rho)
            proposed, proposed_slope = _at(hessian, scale * proposal)
            passes += 1
            if proposed > value:
                point, value, slope = proposal, proposed, proposed_slope
            else:
                length /= 2
        if value > best:
            best, best_point = value, point
    return WorstCaseSharpness(best - loss, loss, scale * best_point, passes, hessian.samples)


@takes_loss
def average_case_sharpness(
    hessian: Hessian,
    *,
    rho: float = 0.05,
    adaptive: bool = True,
    eta: float = 0.0,
    probes: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
) -> AverageCaseSharpness:
    r"""The mean of L(w + rho T z) - L(w) over standard normal z.

    T is diag(\|w\| + eta), or 1 if not ``adaptive``. With T the value does not change when the weights are rescaled
    without changing the function. Every z is taken with both signs, so that the slope of the loss does not add to the
    variance. Afterwards weights, ``.grad`` and the random state are what they were.

    Costs 1 + 2 * probes forward passes.

    Args:
        hessian: a `Hessian`, of which only the loss is asked; or in its place the arguments of `Hessian`, as in
            ``average_case_sharpness(loss_fn, params, batches, samples=..., reduce=..., dtype=...)``.
        rho: standard deviation of an element of the perturbation, in units of T; > 0.
        adaptive: whether it is in units of the weights.
        eta: added to the size of every weight; >= 0. Only if ``adaptive``.
        probes: number of z; >= 8, or the interval could not be trusted.
        confidence: probability that the interval holds the mean; between 0 and 1.
        seed: of the perturbations; the same on all processes.

    Returns:
        The estimate, with its interval by Student's t.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if ``hessian`` is neither a Hessian nor a loss with its parameters.

    Examples:
        For a quadratic it is rho^2 / 2 times the trace, here 0.01 / 2 * (2 + 8) = 0.05:

        >>> import torch
        >>> w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> average = average_case_sharpness(lambda: w[0] ** 2 + 4 * w[1] ** 2, [w], rho=0.1, probes=400)
        >>> average.low < 0.05 < average.high, average.forwards
        (True, 801)

    References:
        Andriushchenko, Croce, Müller, Hein and Flammarion, A Modern Look at the Relationship between Sharpness and
        Generalization, ICML 2023, arXiv:2302.07011.
    """
    if probes < 8:
        raise ValueError(f"average_case_sharpness: `probes` must be >= 8, got {probes!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"average_case_sharpness: `confidence` must be between 0 and 1, got {confidence!r}.")
    scale = rho * _checked_scale("average_case_sharpness", hessian, rho, adaptive, eta)
    generator = torch.Generator().manual_seed(seed)
    loss, rises = hessian.loss(), []
    for _ in range(probes):
        perturbation = scale * torch.randn(hessian.size, generator=generator).to(scale)
        losses = []
        for signed in (perturbation, -perturbation):
            with hessian.perturbed(signed):
                losses.append(hessian.loss())
        rises.append(sum(losses) / 2 - loss)
    mean = mean_with_interval(torch.tensor(rises, dtype=torch.float64), confidence)
    return AverageCaseSharpness(*mean, loss, 1 + 2 * probes, hessian.samples)


def _checked_scale(owner: str, hessian: Hessian, rho: float, adaptive: bool, eta: float) -> Tensor:
    """The diagonal of T."""
    if not 0 < rho < math.inf:
        raise ValueError(f"{owner}: `rho` must be a finite number > 0, got {rho!r}.")
    return (
        element_scale(hessian, eta)
        if adaptive
        else torch.ones(hessian.size, dtype=hessian.dtype, device=hessian.device)
    )


def _at(hessian: Hessian, perturbation: Tensor) -> tuple[float, Tensor]:
    """The loss and its gradient at the perturbed weights."""
    with hessian.perturbed(perturbation):
        return hessian.loss_and_gradient()


def _unit(vector: Tensor) -> Tensor:
    """A vector of length 1 along another; 0 for 0."""
    length = vector.norm()
    return vector / torch.where(length > 0, length, 1)


def _onto_sphere(point: Tensor, radius: float) -> Tensor:
    """The point, or where it would leave the ball the nearest point of the ball."""
    shrunk: Tensor = point * (radius / point.norm()).clamp(max=1)
    return shrunk


def _onto_cube(point: Tensor, radius: float) -> Tensor:
    return point.clamp(-radius, radius)
