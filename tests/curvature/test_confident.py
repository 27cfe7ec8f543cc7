"""How sure it is that no eigenvalue is larger: bounds over random starts, and going on until they are close."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.hessians import BULK, mlp, quadratic, seeded
from torch import Tensor

from lightning_same import top_eigenvalue
from lightning_same.curvature.lanczos import Lanczos


class Diagonal:
    """An operator to which Lanczos, which starts at random, might as well come in any other basis."""

    device, dtype, samples = torch.device("cpu"), torch.float32, 1

    def __init__(self, eigenvalues: Sequence[float] | Tensor) -> None:
        self.eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float32)
        self.size = len(self.eigenvalues)

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.eigenvalues * vector

    def mean_over_processes(self, scalars: Tensor) -> Tensor:
        return scalars


def hidden(size: int = 30_000) -> Diagonal:
    """A dense bulk at 1, and one eigenvalue a percent above it."""
    bulk = 1 + 0.004 * (2 * torch.rand(size - 1, generator=seeded()) - 1)
    return Diagonal(torch.cat([bulk, torch.tensor([1.01])]))


def test_an_eigenvalue_behind_a_dense_bulk() -> None:
    operator = hidden()
    plain = [top_eigenvalue(operator, seed=seed) for seed in range(20)]
    assert all(top.converged for top in plain)  # that an eigenvalue is near
    assert sum(top.value < 1.006 for top in plain) >= 10  # it is not the largest
    assert all(top.upper > 1.01 and top.upper - top.value > 5e-3 for top in plain)  # and says so
    sure = [top_eigenvalue(operator, seed=seed, confident=True) for seed in range(20)]
    assert all(top.converged for top in sure)
    assert [top.value for top in sure] == pytest.approx([1.01] * 20, rel=2e-3)
    assert all(top.upper - top.value <= 2.1e-3 for top in sure)


def test_what_is_not_sure_says_so() -> None:
    with pytest.warns(UserWarning, match=r"not converged .*upper bound of 1\.0.*Raise `max_products`"):
        top = top_eigenvalue(hidden(), confident=True, max_products=5)
    assert not top.converged
    assert top.upper > 1.01


def test_bounds_hold_as_often_as_they_say() -> None:
    """Over starts, whatever the number of products; the eigenvalues at both ends are hard to see."""
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate([rng.normal(size=150), [3.2, -3.1]])
    misses = runs = 0
    for seed in range(300):
        for failure, products in ((0.1, 4), (0.1, 9)):
            start = torch.randn(len(eigenvalues), generator=seeded(seed), dtype=torch.float64)
            lanczos = Lanczos(lambda v: torch.tensor(eigenvalues) * v, start)
            for _ in range(products):
                lanczos.step()
            lower, upper = lanczos.bounds(failure)
            misses += (upper < 3.2) + (lower > -3.1)
            runs += 2
            assert upper >= lanczos.ritz().values[-1] > lanczos.ritz().values[0] >= lower
    # At most a tenth; and not hardly any, or the bound would be of no use.
    assert norm.ppf(0.001) * (runs * 0.1 * 0.9) ** 0.5 / runs < misses / runs <= 0.1
    assert misses > 0


def test_the_bound_is_where_the_polynomials_say() -> None:
    """p_j(mu) = det(mu - T_j) / (beta_1 ... beta_j), in numpy."""
    h = torch.tensor([3.0, 2.5, *BULK], dtype=torch.float64)
    start = torch.randn(len(h), generator=seeded(), dtype=torch.float64)
    lanczos, failure = Lanczos(lambda vector: h * vector, start), 0.05
    for _ in range(6):
        lanczos.step()
    basis = torch.stack(lanczos.basis).numpy()
    t = basis @ (h.numpy()[:, None] * basis.T)
    rest = h.numpy() * basis[-1] - basis.T @ (basis @ (h.numpy() * basis[-1]))
    beside = [*np.diag(t, 1), np.linalg.norm(rest)]
    for bound in lanczos.bounds(failure):
        polynomials = [np.linalg.det(bound * np.eye(j) - t[:j, :j]) / np.prod(beside[:j]) for j in range(1, 7)]
        # |u'v_1| <= 1 / sum has the probability `failure`, for u'v_1 about normal with 1 / |start|.
        smallest = 1 / np.sqrt(1 + np.square(polynomials).sum())
        assert np.sqrt(2 / np.pi) * smallest * start.norm().item() == pytest.approx(failure, rel=1e-3)


def test_an_invariant_space_leaves_no_room() -> None:
    top = top_eigenvalue(*quadratic([3.0, 1.0, -2.0], torch.float64), confident=True, both_ends=True)
    assert (top.upper, top.lower) == pytest.approx((3, -2), rel=1e-10)
    w = torch.ones(5, requires_grad=True)
    flat = top_eigenvalue(lambda: w.sum(), [w], confident=True)
    assert flat.converged
    assert (flat.upper, flat.lower) == pytest.approx((0, 0), abs=1e-30)


@pytest.mark.parametrize("warm", [False, True])
def test_confidence_costs_a_few_products(warm: bool) -> None:
    loss_fn, params, x, y = mlp(steps=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = top_eigenvalue(loss_fn, params, [(x, y)], seed=100).vector if warm else None
        plain, sure = (
            [top_eigenvalue(loss_fn, params, [(x, y)], seed=k, start=before, confident=confident) for k in range(10)]
            for confident in (False, True)
        )
    extra = [two.hvps - one.hvps for one, two in zip(plain, sure, strict=True)]
    assert 1 <= np.median(extra) <= 5
    assert all(one.upper >= two.value for one, two in zip(plain, sure, strict=True))
    assert all(top.upper - top.value <= 2.1e-3 * top.value for top in sure)
