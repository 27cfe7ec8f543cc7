"""The density integrates to 1 whatever the width of its Gaussians and the spacing of its grid."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from support.hessians import BULK, quadratic

from lightning_same import spectral_density


@pytest.mark.parametrize("points", [2, 3, 64, 1024])
@pytest.mark.parametrize("width", [1e-6, 1e-3, 0.02, 0.5])
def test_it_integrates_to_one(width: float, points: int) -> None:
    density = spectral_density(*quadratic([2.0, -1.0, *BULK]), width=width, points=points)
    spacing = (density.grid[-1] - density.grid[0]).item() / (points - 1)
    assert density.density.sum().item() * spacing == pytest.approx(1, abs=1e-6)
    if points > 3:
        assert torch.trapezoid(density.density, density.grid).item() == pytest.approx(1, abs=1e-3 + 0.5 / points)
    assert density.density.min() >= 0


def test_a_point_is_the_mean_over_its_cell() -> None:
    density = spectral_density(*quadratic([2.0, -1.0, *BULK]), width=0.05, points=40, probes=2, steps=6)
    nodes, weights = density.nodes.numpy(), density.weights.numpy()

    def gaussians(x: float) -> float:
        peaks = np.exp(-0.5 * ((x - nodes) / 0.05) ** 2) / (0.05 * math.sqrt(2 * math.pi))
        return float(weights @ peaks)

    half = (density.grid[1] - density.grid[0]).item() / 2
    for k in (3, 12, 20, 33):
        point = density.grid[k].item()
        mean = quad(gaussians, point - half, point + half, limit=200)[0] / (2 * half)
        assert density.density[k].item() == pytest.approx(mean, rel=1e-8, abs=1e-12)
