"""Lanczos keeps its basis orthonormal, and its inner products exact."""

import pytest
import torch
from support.hessians import BULK, seeded

from lightning_same import top_eigenvalue
from lightning_same.curvature.lanczos import Lanczos
from lightning_same.curvature.vectors import dots
from lightning_same.gradients.pieces import PIECE


def test_lanczos_keeps_its_basis_orthonormal() -> None:
    h = torch.tensor([100.0, 50.0, *BULK])
    lanczos = Lanczos(lambda vector: h * vector, torch.randn(len(h), generator=seeded()))
    for _ in range(60):
        lanczos.step()
    basis = torch.stack(lanczos.basis).double()
    assert (basis @ basis.T - torch.eye(60)).abs().max() < 1e-5
    values, residuals, coordinates = lanczos.ritz()
    vector = lanczos.vector(coordinates[:, -1]).double()
    assert vector.norm() == pytest.approx(1, abs=1e-5)
    assert (h * vector - values[-1] * vector).norm() <= residuals[-1] + 1e-3


def test_inner_products_of_long_vectors() -> None:
    vectors = list(torch.randn(3, PIECE + 77, generator=seeded()))
    exact = torch.stack(vectors).double() @ vectors[0].double()
    assert dots(vectors, vectors[0]).tolist() == pytest.approx(exact.tolist(), rel=1e-12)
    assert dots(vectors, vectors[0]).dtype == torch.float64


@pytest.mark.parametrize("tolerance", [1e-4, 1e-5])
def test_in_float32_a_residual_goes_down_to_the_last_places(tolerance: float) -> None:
    """What the search stops at is the rounding of a product, of which 32 units in the last place are 4e-6."""
    h = torch.tensor([10.0, 9.0, 8.0, *BULK])
    w = torch.zeros(len(h), requires_grad=True)
    top = top_eigenvalue(lambda: 0.5 * (h * w**2).sum(), [w], tolerance=tolerance, max_products=60)
    assert top.converged
    assert top.residual <= tolerance * 10
    assert abs(top.value - 10) < tolerance * 10
    vector = top.vector.double()
    assert (h.double() * vector - top.value * vector).norm() <= 1.5 * tolerance * 10
