"""What is measured of a loss's sharpness at one moment, by log keys."""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lightning_same.curvature.adaptive import AdaptiveHessian
from lightning_same.curvature.eigenvalues import TopEigenvalue, extreme_eigenvalues, reason
from lightning_same.curvature.gradient import gradient_curvature
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.neighborhood import average_case_sharpness, worst_case_sharpness
from lightning_same.curvature.vectors import cosine, dots
from lightning_same.rules.base import Rule


class Measured(NamedTuple):
    """What one measurement finds.

    Attributes:
        row: the values by their keys.
        vector: the unit eigenvector of the largest eigenvalue.
        doubts: why ``sharpness/converged`` is 0, a sentence for each reason; empty where it is 1.
    """

    row: dict[str, float]
    vector: Tensor
    doubts: list[str]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to measure, and how well: options of `SharpnessMonitor`, which documents them."""

    tolerance: float
    both_ends: bool
    max_products: int
    confident: bool
    adaptive: bool
    worst_case: float | None
    average_case: float | None
    gradient_curvature: bool
    seed: int

    def of(
        self,
        hessian: Hessian,
        rule: Rule,
        radii: dict[Tensor, float] | None,
        start: Tensor | None = None,
        seed: int | None = None,
    ) -> Measured:
        """Measure.

        Args:
            hessian: of the loss at the present weights.
            rule: what makes e of the gradient.
            radii: radius of e for each parameter; None for that of the rule.
            start: the last eigenvector, near which the search starts. Default: at random.
            seed: of the random start. Default: ``self.seed``.
        """
        options = (self.tolerance, self.both_ends, self.max_products, self.seed if seed is None else seed)
        top = extreme_eigenvalues(hessian, *options, start, self.confident)
        results = [top]
        if self.adaptive:
            results.append(extreme_eigenvalues(AdaptiveHessian(hessian), *options, confident=self.confident))
        doubts = [reason(result, self.tolerance) for result in results if not result.converged]
        row = {
            "sharpness/top_eigenvalue": top.value,
            "sharpness/bottom_eigenvalue": top.bottom,
            "sharpness/residual": top.residual,
            "sharpness/bottom_residual": top.bottom_residual,
            "sharpness/rounding": top.rounding,
            "sharpness/upper_bound": top.upper,
            "sharpness/hvps": float(sum(result.hvps for result in results)),
            "sharpness/converged": 1.0,
        }
        if self.adaptive:
            row["sharpness/adaptive_top_eigenvalue"] = results[1].value
        if hessian.finer is not None and top.vector.dtype == hessian.finer.dtype:
            hessian = hessian.finer
        if self.gradient_curvature:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "gradient_curvature: the value is")
                along = gradient_curvature(hessian, tolerance=self.tolerance)
            row["sharpness/gradient_curvature"] = along.value
            row["sharpness/hvps"] += along.hvps
            if along.rounding > self.tolerance * abs(along.value):
                doubts.append(
                    f"g'Hg / g'g is {along.value:.4g}, and its error by rounding may be {along.rounding:.2g}: measure"
                    ' with `dtype="float64"`, or "auto".'
                )
        row |= _ascent(hessian, rule, radii, top) | self._neighborhood(hessian)
        row["sharpness/converged"] = float(not doubts)
        return Measured(row, top.vector, doubts)

    def _neighborhood(self, hessian: Hessian) -> dict[str, float]:
        """How much the loss rises around the weights, in units of the weights."""
        row = {}
        if self.worst_case is not None:
            row["sharpness/worst_case"] = worst_case_sharpness(hessian, rho=self.worst_case, seed=self.seed).value
        if self.average_case is not None:
            average = average_case_sharpness(hessian, rho=self.average_case, seed=self.seed)
            row["sharpness/average_case"] = average.value
        return row


def _ascent(
    hessian: Hessian, rule: Rule, radius_of: dict[Tensor, float] | None, top: TopEigenvalue
) -> dict[str, float]:
    """What the loss does on the way to w + e, and where e points."""
    radii = None if radius_of is None else [radius_of.get(param, 0.0) for param in hessian.params]
    before, gradient = hessian.loss_and_gradient()
    weights = hessian.weights()
    with rule.perturbed(hessian.params, hessian.split(gradient), radii):  # It invalidates the graph.
        e = hessian.weights().sub_(weights)
        gap = hessian.loss() - before
    slope, square = dots([gradient, e], e).tolist()
    return {
        "sharpness/ascent_gap": gap,
        "sharpness/ascent_curvature": 2 * (gap - slope) / square if square else math.nan,
        "sharpness/ascent_alignment": cosine(e, top.vector).abs().item(),
    }
