"""The extreme eigenvalues, against known spectra, dense Hessians and two other libraries."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from sklearn.datasets import load_digits
from support.hessians import BULK, Loss, dense, quadratic, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same.curvature.eigenvalues import top_eigenvalue
from lightning_same.curvature.gradient import gradient_curvature
from lightning_same.curvature.spectrum import hessian_trace, spectral_density

SPECTRA = {
    "1, -1": [1.0, -1.0],
    "0.99, -1": [0.99, -1.0],
    "1, -0.99": [1.0, -0.99],
    "1, -1 over a bulk": [1.0, -1.0, *BULK],
    "0.99, -1 over a bulk": [0.99, -1.0, *BULK],
    "1, -0.99 over a bulk": [1.0, -0.99, *BULK],
    "cluster": [1 - 1e-4 * k for k in range(10)] + [-1 + 1e-4 * k for k in range(10)] + BULK,
    "multiple": [1.0] * 20 + [-1.0] * 20 + BULK,
    "crossing": [0.9, 1.0, *(8 * b for b in BULK)],
    "bulk of ones": [1.5, *(1 + b / 100 for b in BULK * 40)],  # the first residuals are all below the tolerance
    "negative": [-0.2, *(b - 0.5 for b in BULK)],
    "negative semidefinite": [0.0] * 50 + [-1.0, -2.0],
    "identity": [1.0] * 30,
}


@pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
def test_known_spectra_on_every_seed(eigenvalues: list[float]) -> None:
    loss_fn, params = quadratic(eigenvalues)
    for seed in range(20):
        top = top_eigenvalue(loss_fn, params, seed=seed, max_products=128, both_ends=True)
        assert top.converged
        assert min(top.residual, top.bottom_residual) >= 1e-7 * max(map(abs, eigenvalues))
        assert top.value == pytest.approx(max(eigenvalues), rel=1e-3, abs=1e-6)
        assert top.bottom == pytest.approx(min(eigenvalues), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize(
    "bulk", [BULK, [8 * b for b in BULK], [b / 2 for b in BULK * 100]], ids=["thin", "wide", "large"]
)
def test_a_warm_start_is_not_fooled_by_a_crossing(bulk: list[float]) -> None:
    """Started on what was the top eigenvector until another eigenvalue overtook it."""
    loss_fn, params = quadratic([0.9, 1.0, *bulk])
    before = torch.eye(1, 2 + len(bulk))[0]
    for seed in range(20):
        top = top_eigenvalue(loss_fn, params, seed=seed, start=before)
        assert top.converged
        assert top.value == pytest.approx(1.0, rel=1e-3)
        assert top.vector[1].abs() > 0.9


def test_a_warm_start_saves_products_where_nothing_has_crossed() -> None:
    loss_fn, params = quadratic([1.0, 0.9, *(8 * b for b in BULK)])
    cold = [top_eigenvalue(loss_fn, params, seed=seed) for seed in range(20)]
    warm = [top_eigenvalue(loss_fn, params, seed=20 + seed, start=cold[seed].vector) for seed in range(20)]
    assert all(top.value == pytest.approx(1.0, rel=1e-3) for top in warm)
    assert sum(top.hvps for top in warm) <= sum(top.hvps for top in cold) - 20
    for start in (torch.zeros(202), torch.full((202,), math.nan)):  # of no use, so that it starts at random
        assert top_eigenvalue(loss_fn, params, start=start)[:5] == cold[0][:5]


@settings(deadline=None, max_examples=50)
@given(
    # Multiples of 1e-6: the square of an eigenvalue of 1e-200, which floats would be drawn as, is 0 in any precision.
    eigenvalues=st.lists(st.integers(-(10**7), 10**7).map(lambda n: n / 10**6), min_size=1, max_size=12),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_any_symmetric_matrix_between_its_bounds(eigenvalues: list[float], scale: float, seed: int) -> None:
    n, exact = len(eigenvalues), scale * torch.tensor(eigenvalues, dtype=torch.float64).sort().values
    q = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)).Q
    h, w = q @ exact.diag() @ q.T, torch.zeros(n, dtype=torch.float64, requires_grad=True)
    top = top_eigenvalue(lambda: 0.5 * w @ h @ w, [w], seed=seed)
    rounding = 1e-12 * exact.abs().max().item()
    assert top.converged
    assert top.hvps <= n
    assert exact[0] - rounding <= top.bottom <= top.value <= exact[-1] + rounding
    assert (exact - top.value).abs().min() <= top.residual + rounding
    assert (exact - top.bottom).abs().min() <= top.bottom_residual + rounding
    assert top.residual <= max(2e-3 * abs(top.value), 32 * 2.3e-16 * exact.abs().max().item())


def test_mlp_against_the_dense_hessian() -> None:
    """1,066 parameters on the digits, 5 states of training by 3 seeds of weights and start vectors."""
    errors, hvps = [], []
    x, y = (torch.tensor(each[:160]) for each in load_digits(return_X_y=True))
    x = x / 16
    for seed in range(3):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10)).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for steps in (0, 10, 40, 150, 300):
            for _ in range(steps):
                chosen = torch.randint(160, (64,))
                optimizer.zero_grad()
                cross_entropy(net(x[chosen]), y[chosen]).backward()
                optimizer.step()
            exact = torch.linalg.eigvalsh(dense(lambda net=net: cross_entropy(net(x), y), list(net.parameters())))
            single = copy.deepcopy(net).float()
            for start in range(3):
                top = top_eigenvalue(lambda net=single: cross_entropy(net(x.float()), y), single, seed=start)
                assert top.converged
                errors.append(abs(top.value / exact[-1].item() - 1))
                hvps.append(top.hvps)
        both = top_eigenvalue(lambda net=net: cross_entropy(net(x), y), net, both_ends=True, max_products=100)
        assert both.bottom == pytest.approx(exact[0].item(), rel=1e-3)
    assert np.mean(np.array(errors) <= 1e-3) >= 0.99
    assert np.median(hvps) <= 10
    assert max(hvps) <= 16


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def test_a_small_resnet_against_two_other_libraries() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), Block(6), Block(6), nn.Flatten(), nn.Linear(6 * 49, 5)
    )
    x, y = torch.randn(24, 3, 16, 16), torch.arange(24) % 5
    for _ in range(20):
        net(x)  # running statistics that fit the data
    net.double().eval()
    x = x.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator
        from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

        peer = HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)], progressbar=False)
        by_curvlinops = eigsh(peer.to_scipy(dtype=np.float64), k=1, which="LA", return_eigenvectors=False)[0]
        operator = HessianOperator(net, [(x, y)], supervised_loss(cross_entropy), full_dataset=True)
        by_eigenthings = lanczos(operator, k=1, max_iter=40, which="LA").eigenvalues[0].item()
    top = top_eigenvalue(
        lambda batch: cross_entropy(net(batch[0]), batch[1]), net, [(x[:20], y[:20]), (x[20:], y[20:])]
    )
    assert top.value == pytest.approx(by_curvlinops, rel=1e-4)
    assert top.value == pytest.approx(by_eigenthings, rel=1e-4)


@pytest.mark.parametrize("loss_fn", [lambda w: w.sum(), lambda w: (0 * w * w).sum(), lambda w: w.square().sum() * 0])
def test_no_curvature(loss_fn: Loss) -> None:
    w = torch.ones(5, requires_grad=True)
    top = top_eigenvalue(lambda: loss_fn(w), [w])
    assert top[:5] == (0, 0, 0, 1, True)
    assert hessian_trace(lambda: loss_fn(w), [w])[:4] == (0, 0, 0, 0)
    value = gradient_curvature(lambda: loss_fn(w), [w]).value
    assert value == 0 if loss_fn(w) != 0 else math.isnan(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_smallest_eigenvalue_of_zero_has_no_relative_error(dtype: torch.dtype) -> None:
    top = top_eigenvalue(*quadratic([5.0, 2.0, 1.0] + 7 * [0.0], dtype), both_ends=True)
    assert top.converged
    assert (top.value, top.bottom) == pytest.approx((5, 0), abs=1e-5)


def test_one_parameter() -> None:
    w = torch.tensor(2.0, requires_grad=True)
    assert top_eigenvalue(lambda: w**3, [w])[:5] == pytest.approx((12, 12, 0, 1, True), abs=2e-6)
    assert gradient_curvature(lambda: w**3, [w])[:2] == (12, 12)


def test_what_has_not_converged_says_so() -> None:
    loss_fn, params = quadratic([math.cos(k) for k in range(300)])
    with pytest.warns(UserWarning, match=r"not converged to 0.002 after 3 products.*Raise `max_products`"):
        top = top_eigenvalue(loss_fn, params, max_products=3)
    assert (top.converged, top.hvps) == (False, 3)
    assert top.residual > 2e-3 * top.value
    with pytest.warns(UserWarning, match="not converged"):
        assert not top_eigenvalue(*quadratic([3.0, *BULK]), both_ends=True, max_products=6).converged
    w = torch.ones(2, requires_grad=True)
    with pytest.warns(UserWarning, match="not finite"):
        top = top_eigenvalue(lambda: w.square().sum() * math.inf, [w])
    assert not top.converged
    assert all(map(math.isnan, (top.value, top.bottom, top.residual, top.bottom_residual)))
    with pytest.raises(FloatingPointError):
        spectral_density(lambda: w.square().sum() * math.nan, [w])


def test_a_tighter_tolerance_takes_more_products_to_a_smaller_error() -> None:
    loss_fn, params = quadratic([2.0, 1.9, *BULK], torch.float64)
    tops = [top_eigenvalue(loss_fn, params, tolerance=tolerance) for tolerance in (1e-1, 1e-3, 1e-6)]
    hvps, errors = [top.hvps for top in tops], [2 - top.value for top in tops]
    assert hvps == sorted(set(hvps))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-11
