"""Trace and density, against closed forms in numpy and dense Hessians."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from support.hessians import BULK, dense, mlp, quadratic, seeded
from torch import Tensor, nn

from lightning_same.curvature.eigenvalues import top_eigenvalue
from lightning_same.curvature.gradient import gradient_curvature
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.spectrum import hessian_trace, spectral_density


def test_logistic_regression_has_the_closed_form() -> None:
    # H = X' diag(p (1 - p)) X / n + decay, g = X' (p - y) / n + decay w, in numpy.
    rng = np.random.default_rng(0)
    x, w, y, decay = rng.normal(size=(50, 8)), rng.normal(size=8), rng.integers(0, 2, 50), 0.3
    p = 1 / (1 + np.exp(-x @ w))
    h = x.T @ (x * (p * (1 - p))[:, None]) / 50 + decay * np.eye(8)
    g = x.T @ (p - y) / 50 + decay * w
    eigenvalues = np.linalg.eigvalsh(h)

    data, label, param = torch.tensor(x), torch.tensor(y, dtype=torch.float64), torch.tensor(w, requires_grad=True)
    bce = nn.functional.binary_cross_entropy_with_logits

    def loss_fn() -> Tensor:
        return bce(data @ param, label) + 0.5 * decay * param.square().sum()

    hessian, v = Hessian(loss_fn, [param]), rng.normal(size=8)
    np.testing.assert_allclose(hessian @ torch.tensor(v), h @ v, rtol=1e-12)
    np.testing.assert_allclose(hessian.gradient(), g, rtol=1e-12)
    top = top_eigenvalue(loss_fn, [param], tolerance=1e-8)
    np.testing.assert_allclose((top.bottom, top.value), eigenvalues[[0, -1]], rtol=1e-12)
    along = gradient_curvature(loss_fn, [param])
    np.testing.assert_allclose(along.value, g @ h @ g / (g @ g), rtol=1e-12)
    np.testing.assert_allclose(along.grad_norm, np.linalg.norm(g), rtol=1e-12)
    trace = hessian_trace(loss_fn, [param], probes=1000)
    assert trace.low < np.trace(h) < trace.high
    density = spectral_density(loss_fn, [param], probes=400)
    np.testing.assert_allclose(density.weights @ density.nodes, np.trace(h) / 8, rtol=0.03)
    assert all(np.abs(eigenvalues - node).min() < 1e-9 for node in density.nodes.tolist())


def test_trace_interval_holds_the_trace_as_often_as_it_says() -> None:
    w = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    a = torch.randn(30, 30, generator=seeded(), dtype=torch.float64)
    h = a + a.T
    held = 0
    for seed in range(200):
        trace = hessian_trace(lambda: 0.5 * w @ h @ w, [w], probes=8, confidence=0.8, seed=seed)
        held += trace.low <= h.trace() <= trace.high
        margin = trace.standard_error * student.ppf(0.9, 7)
        assert (trace.low, trace.high) == pytest.approx((trace.value - margin, trace.value + margin), rel=1e-9)
        assert trace.hvps == 8
    assert 145 <= held <= 175  # 160 expected, with a standard deviation of 5.7


def test_trace_of_a_diagonal_hessian_is_exact() -> None:
    loss_fn, params = quadratic(BULK, torch.float64)
    trace = hessian_trace(loss_fn, params)
    assert (trace.value, trace.standard_error) == pytest.approx((sum(BULK), 0), abs=1e-13)


@pytest.mark.parametrize(
    ("confidence", "freedom", "exact"), [(0.95, 7, 2.36462), (0.99, 31, 2.74404), (0.5, 9, 0.70272)]
)
def test_student_quantile_is_the_tables(confidence: float, freedom: int, exact: float) -> None:
    w = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    a = torch.randn(30, 30, generator=seeded(), dtype=torch.float64)
    trace = hessian_trace(lambda: w @ a @ w, [w], probes=freedom + 1, confidence=confidence)
    margins = torch.tensor([trace.value - trace.low, trace.high - trace.value]) / trace.standard_error
    assert margins.tolist() == pytest.approx([exact, exact], rel=1e-5)


def test_density_is_that_of_the_eigenvalues() -> None:
    loss_fn, params, x, y = mlp(steps=60)
    density = spectral_density(loss_fn, params, [(x, y)], probes=16)
    exact = torch.linalg.eigvalsh(dense(lambda: loss_fn((x, y)), params)).double()
    peaks = torch.exp(-0.5 * ((density.grid[:, None] - exact) / density.width).square())
    smoothed = peaks.mean(1) / (density.width * math.sqrt(2 * math.pi))
    assert torch.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-5)
    assert torch.trapezoid((density.density - smoothed).abs(), density.grid) < 0.1  # of at most 2
    assert density.nodes[-1] == pytest.approx(exact[-1].item(), rel=1e-4)
    assert density.weights.sum() == pytest.approx(1)
    for power in (1, 2):
        moment = (density.weights * density.nodes**power).sum()
        assert moment == pytest.approx(exact.pow(power).mean().item(), rel=0.15)


def test_density_of_one_eigenvalue_and_of_none() -> None:
    for eigenvalue in (3.0, 0.0):
        density = spectral_density(*quadratic([eigenvalue] * 7), probes=3)
        assert density.hvps == 3
        assert density.nodes.tolist() == pytest.approx([eigenvalue] * 3)
        assert torch.trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-5)
    assert spectral_density(*quadratic([0.0, 2.0]), width=0.5, points=7).grid.tolist() == pytest.approx(
        [-2.5 + 7 / 6 * k for k in range(7)]
    )
