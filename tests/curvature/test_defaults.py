"""What a measure does if nothing is said, what it costs, and on which side of a value its bounds lie."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_same import (
    AdaptiveHessian,
    Hessian,
    average_case_sharpness,
    gradient_curvature,
    hessian_trace,
    spectral_density,
    top_eigenvalue,
    worst_case_sharpness,
)
from lightning_same.curvature.lanczos import Lanczos


def a_loss(dtype: torch.dtype = torch.float64, at: float = 1.0) -> tuple[Any, list[Tensor]]:
    """A quadratic and a quartic in six weights, whose Hessian is dense; at 0 it has no slope."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64).to(dtype)
    w = (at * torch.randn(6, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    return lambda: (root @ w).square().sum() + w.pow(4).sum() / 10, [w]


def numbers(result: Any) -> list[list[float]]:
    return [torch.as_tensor(value, dtype=torch.float64).flatten().tolist() for value in result]


MEASURES: dict[Any, dict[str, Any]] = {
    top_eigenvalue: {"max_products": 4, "tolerance": 0.5},
    hessian_trace: {},
    spectral_density: {"points": 20},
    worst_case_sharpness: {"steps": 1, "adaptive": False},
    average_case_sharpness: {},
}


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_the_seed_is_0(measure: Any) -> None:
    loss = a_loss(at=0.0 if measure is worst_case_sharpness else 1.0)  # Where there is a slope, the ascent follows it.
    options = MEASURES[measure]
    found = numbers(measure(*loss, **options))
    assert found == numbers(measure(*loss, **options, seed=0))
    assert found != numbers(measure(*loss, **options, seed=1))


def test_what_they_cost() -> None:
    hessian = Hessian(*a_loss())
    assert worst_case_sharpness(hessian).passes == 22
    assert average_case_sharpness(hessian).forwards == 33
    assert hessian.hvps == 0
    assert hessian_trace(hessian).hvps == hessian.hvps == 32
    assert gradient_curvature(hessian).hvps == 1
    assert hessian.hvps == 33
    density = spectral_density(hessian)
    assert density.hvps == hessian.hvps - 33 == 8 * 6  # No Krylov space has more than six vectors.
    assert len(density.grid) == 1024
    top = top_eigenvalue(hessian)
    assert top.hvps == hessian.hvps - 33 - 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bounds_have_room_for_rounding(dtype: torch.dtype) -> None:
    hessian = Hessian(*a_loss(dtype))
    top = top_eigenvalue(hessian, tolerance=1e-3)
    start = torch.randn(6, generator=torch.Generator().manual_seed(0)).to(dtype)
    lanczos = Lanczos(hessian.__matmul__, start)
    for _ in range(top.hvps):
        lanczos.step()
    lower, upper = lanczos.bounds(0.01)
    assert top.rounding > 0
    assert (top.lower, top.upper) == (lower - top.rounding, upper + top.rounding)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_an_operator_is_given_by_its_place_or_its_name(measure: Any) -> None:
    hessian, options = Hessian(*a_loss()), MEASURES[measure]
    assert numbers(measure(hessian=hessian, **options)) == numbers(measure(hessian, **options))


def test_a_second_measurement_in_float64_has_the_products_of_both_and_the_same_scale() -> None:
    loss, params = a_loss(torch.float32)
    plain = Hessian(loss, params, dtype="auto")
    for hessian in (plain, AdaptiveHessian(plain, eta=0.7)):
        before = plain.hvps
        top = top_eigenvalue(hessian, tolerance=1e-9, max_products=6, both_ends=True)
        assert top.vector.dtype == torch.float64
        assert plain.hvps > before
        exact = Hessian(loss, params, dtype="float64")
        wanted = top_eigenvalue(exact if hessian is plain else AdaptiveHessian(exact, eta=0.7), tolerance=1e-9)
        assert top.value == pytest.approx(wanted.value, rel=1e-9)
        assert top.hvps == plain.hvps - before + 6
    assert gradient_curvature(plain, tolerance=1e-9).hvps == 2
