"""Sharpness in units of the weights: against numpy, and the same for rescaled networks."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from support.hessians import mlp
from support.ranks import Ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same import (
    SAM,
    AdaptiveHessian,
    Hessian,
    average_case_sharpness,
    gradient_curvature,
    hessian_trace,
    spectral_density,
    top_eigenvalue,
    worst_case_sharpness,
)


class Quadratic:
    """g'e + e'He / 2 around w, with an indefinite H."""

    def __init__(self, size: int = 8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(size, size))
        self.h, self.g, self.w = a + a.T, rng.normal(size=size), rng.normal(size=size)
        self.param = torch.tensor(self.w, requires_grad=True)

    def loss(self) -> Tensor:
        e = self.param - torch.tensor(self.w)
        return torch.tensor(self.g) @ e + 0.5 * e @ torch.tensor(self.h) @ e

    def rise(self, e: np.ndarray) -> float:
        return float(self.g @ e + 0.5 * e @ self.h @ e)

    def worst(self, scale: np.ndarray, radius: float) -> float:
        """The trust-region problem in the eigenbasis: (lambda - H) e = g with |e| = radius and lambda >= the top."""
        values, vectors = np.linalg.eigh(scale[:, None] * self.h * scale)
        g = vectors.T @ (scale * self.g)

        def length(shift: float) -> float:
            return float(np.linalg.norm(g / (values[-1] + shift - values)) - radius)

        shift = brentq(length, 1e-12, 1e6, xtol=1e-15)
        e = g / (values[-1] + shift - values)
        return float(g @ e + 0.5 * values @ e**2)


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_the_adaptive_hessian_is_t_h_t(eta: float) -> None:
    problem = Quadratic()
    t = np.abs(problem.w) + eta
    h, g = t[:, None] * problem.h * t, t * problem.g
    operator = AdaptiveHessian(Hessian(problem.loss, [problem.param]), eta=eta)
    vector = np.arange(8.0)
    np.testing.assert_allclose(operator @ torch.tensor(vector), h @ vector, rtol=1e-12)
    np.testing.assert_allclose(operator.scale, t)
    top = top_eigenvalue(operator, both_ends=True, tolerance=1e-9)
    np.testing.assert_allclose((top.bottom, top.value), np.linalg.eigvalsh(h)[[0, -1]], rtol=1e-10)
    np.testing.assert_allclose(gradient_curvature(operator).value, g @ h @ g / (g @ g), rtol=1e-10)
    trace = hessian_trace(operator, probes=400)
    assert trace.low < np.trace(h) < trace.high
    np.testing.assert_allclose(spectral_density(operator, probes=1).nodes, np.linalg.eigvalsh(h), rtol=1e-9)


@pytest.mark.parametrize("radius", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_worst_case_is_that_of_the_trust_region_problem(adaptive: bool, radius: float) -> None:
    for seed in range(5):
        problem = Quadratic(seed=seed)
        scale = np.abs(problem.w) if adaptive else np.ones(8)
        found = worst_case_sharpness(
            problem.loss, [problem.param], rho=radius, adaptive=adaptive, steps=150, starts=3, seed=seed
        )
        assert found.value == pytest.approx(problem.worst(scale, radius), rel=1e-5)
        assert found.value == pytest.approx(problem.rise(found.perturbation.numpy()), rel=1e-9)
        assert np.linalg.norm(found.perturbation.numpy() / scale) <= radius * (1 + 1e-9)
        assert found.passes == 1 + 3 * 151


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_worst_case_in_a_cube_is_at_a_corner(adaptive: bool) -> None:
    """Of a convex loss; all 2^6 corners."""
    problem = Quadratic(size=6)
    problem.h = problem.h @ problem.h
    scale = np.abs(problem.w) if adaptive else np.ones(6)
    corners = [0.2 * scale * np.array(signs) for signs in itertools.product((-1, 1), repeat=6)]
    found = worst_case_sharpness(
        problem.loss, [problem.param], rho=0.2, adaptive=adaptive, norm="inf", steps=40, starts=40
    )
    assert found.value == pytest.approx(max(map(problem.rise, corners)), rel=1e-9)


def test_more_steps_never_give_less_and_none_are_sams() -> None:
    loss_fn, params, x, y = mlp(steps=40, dtype=torch.float64)
    values = [
        worst_case_sharpness(loss_fn, params, [(x, y)], rho=0.5, adaptive=False, steps=steps).value
        for steps in (0, 1, 3, 10, 30)
    ]
    assert values == sorted(values)
    assert values[-1] > 1.01 * values[0]
    before = loss_fn((x, y))
    with SAM(0.5).perturbed(params, list(torch.autograd.grad(before, params))):
        assert values[0] == pytest.approx((loss_fn((x, y)) - before).item(), rel=1e-9)


def test_a_slope_adds_nothing_to_the_average_case() -> None:
    w = torch.ones(5, dtype=torch.float64, requires_grad=True)
    slope = torch.arange(5, dtype=torch.float64)
    average = average_case_sharpness(lambda: (slope * w).sum(), [w], rho=0.1)
    assert [average.low, average.value, average.high] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_worst_point_inside_of_the_ball_is_found() -> None:
    """Steps that go beyond it are taken back and halved."""
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    top = torch.tensor([0.013, -0.02], dtype=torch.float64)
    worst = worst_case_sharpness(lambda: -(w - top).square().sum(), [w], rho=0.1, adaptive=False, steps=30)
    assert worst.value == pytest.approx(top.square().sum().item(), rel=1e-3)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_average_case_of_a_quadratic_is_its_trace(adaptive: bool) -> None:
    problem = Quadratic()
    scale = np.abs(problem.w) if adaptive else np.ones(8)
    exact = 0.5 * 0.3**2 * (scale**2 * np.diag(problem.h)).sum()
    covered = 0
    for seed in range(100):
        average = average_case_sharpness(
            problem.loss, [problem.param], rho=0.3, adaptive=adaptive, probes=8, confidence=0.8, seed=seed
        )
        covered += average.low <= exact <= average.high
        assert average.forwards == 17
    assert 68 <= covered <= 92  # 80 expected, with a standard deviation of 4
    many = average_case_sharpness(problem.loss, [problem.param], rho=0.3, adaptive=adaptive, probes=3000)
    assert abs(many.value - exact) < 4 * many.standard_error


class Rescalable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def rescale(self, factor: float) -> None:
        """Another net, the same function."""
        with torch.no_grad():
            self.first.weight.mul_(factor)
            self.first.bias.mul_(factor)
            self.second.weight.div_(factor)


SHARPNESS: dict[str, tuple[Callable[..., float], bool]] = {
    "eigenvalue": (lambda h: top_eigenvalue(h, tolerance=1e-7, max_products=75).value, False),
    "adaptive eigenvalue": (lambda h: top_eigenvalue(AdaptiveHessian(h), tolerance=1e-7, max_products=75).value, True),
    "adaptive density": (lambda h: spectral_density(AdaptiveHessian(h), steps=6, probes=1).nodes.sum().item(), True),
    "worst case": (lambda h: worst_case_sharpness(h, rho=0.2, adaptive=False).value, False),
    "adaptive worst case": (lambda h: worst_case_sharpness(h, rho=0.2).value, True),
    "adaptive worst case in a cube": (lambda h: worst_case_sharpness(h, rho=0.05, norm="inf").value, True),
    "average case": (lambda h: average_case_sharpness(h, rho=0.05, adaptive=False).value, False),
    "adaptive average case": (lambda h: average_case_sharpness(h, rho=0.05).value, True),
}


@pytest.mark.parametrize(("measure", "is_invariant"), SHARPNESS.values(), ids=SHARPNESS)
def test_a_rescaled_network_is_as_sharp(measure: Callable[..., float], is_invariant: bool) -> None:
    torch.manual_seed(0)
    net = Rescalable().double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3
    hessian_of = lambda: Hessian(lambda: cross_entropy(net(x), y), net)  # noqa: E731
    before = measure(hessian_of())
    net.rescale(8.0)
    after = measure(hessian_of())
    assert (after == pytest.approx(before, rel=1e-6)) is is_invariant


@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("measure", [worst_case_sharpness, average_case_sharpness])
def test_nothing_is_disturbed(measure: Callable[..., Any], dtype: Any) -> None:
    loss_fn, params, x, y = mlp(steps=20)
    batches = [(x[:50], y[:50]), (x[50:], y[50:])]
    params[0].grad = torch.ones_like(params[0])
    weights, numbers = [param.detach().clone() for param in params], torch.get_rng_state()
    first = measure(loss_fn, params, batches, rho=0.3, dtype=dtype)
    torch.rand(3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        again = measure(loss_fn, params, batches, rho=0.3, dtype=dtype)
    assert first.value == again.value
    assert all(torch.equal(a, b) for a, b in zip(weights, params, strict=True))
    assert params[0].grad.eq(1).all()
    assert all(param.grad is None for param in params[1:])
    torch.rand(3)
    state = torch.get_rng_state()
    measure(loss_fn, params, batches, rho=0.3, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(numbers, state)

    def fails(batch: Any) -> Tensor:
        if any(not torch.equal(a, b) for a, b in zip(weights, params, strict=True)):
            raise OSError("perturbed")
        return loss_fn(batch)

    if dtype is None:
        with pytest.raises(OSError, match="perturbed"):
            measure(fails, params, batches, rho=0.3)
        assert all(torch.equal(a, b) for a, b in zip(weights, params, strict=True))


def test_a_hessian_serves_before_and_after() -> None:
    """Its graph belongs to the weights as they were."""
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    hessian = Hessian(loss_fn, params, [(x, y)])
    vector = torch.ones(hessian.size, dtype=torch.float64)
    product, gradient = hessian @ vector, hessian.gradient()
    with hessian.perturbed(0.1 * vector):
        assert not torch.allclose(hessian.gradient(), gradient, rtol=1e-3)
        assert not torch.allclose(hessian @ vector, product, rtol=1e-3)
    assert torch.equal(hessian @ vector, product)
    assert torch.equal(hessian.gradient(), gradient)


def test_float64_sees_a_rise_that_float32_rounds_away() -> None:
    loss_fn, params, x, y = mlp(steps=20)
    expected_loss, expected, *_ = mlp(steps=20, dtype=torch.float64)
    for measure in (worst_case_sharpness, average_case_sharpness):
        exact = measure(expected_loss, expected, [(x.double(), y)], rho=1e-6).value
        assert measure(loss_fn, params, [(x, y)], rho=1e-6, dtype="float64").value == pytest.approx(exact, rel=1e-6)
        assert measure(loss_fn, params, [(x, y)], rho=1e-6).value != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("measure", [worst_case_sharpness, average_case_sharpness])
def test_batches_weigh_by_their_samples(measure: Callable[..., Any]) -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    one = measure(loss_fn, params, [(x, y)])
    many = measure(loss_fn, params, [(x[:60], y[:60]), (x[60:95], y[60:95]), (x[95:], y[95:])])
    assert many.value == pytest.approx(one.value, rel=1e-9)
    assert many.samples == one.samples == 96


def ragged(rank: int) -> list[float]:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    share = [slice(0, 70), slice(70, 90)] if rank == 0 else [slice(90, 96)]

    def reduce(flat: Tensor) -> Tensor:
        torch.distributed.all_reduce(flat)
        return flat

    hessian = Hessian(loss_fn, params, [(x[cut], y[cut]) for cut in share], reduce=reduce)
    return [measure(hessian).value for measure in (worst_case_sharpness, average_case_sharpness)]


def by_rank() -> list[float]:
    return ragged(torch.distributed.get_rank())


def test_processes_with_ragged_shares_measure_the_union(ranks: dict[int, Ranks]) -> None:
    first, second = ranks[2].run(by_rank)
    assert first == second
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    union = [measure(loss_fn, params, [(x, y)]).value for measure in (worst_case_sharpness, average_case_sharpness)]
    assert first == pytest.approx(union, rel=1e-9)


def test_a_flat_point_and_an_infinite_loss() -> None:
    w = torch.zeros(3, requires_grad=True)
    found = worst_case_sharpness(lambda: w.square().sum(), [w], rho=0.5, adaptive=False)  # its gradient is 0
    assert found.value == pytest.approx(0.25)
    assert worst_case_sharpness(lambda: w.sum() * 0, [w], rho=0.5, adaptive=False).value == 0
    assert worst_case_sharpness(lambda: w.square().sum(), [w]).value == 0  # a weight of 0 is not perturbed
    steep = worst_case_sharpness(lambda: torch.exp(1000 * w).sum(), [w], rho=0.5, adaptive=False)
    assert steep.value == float("inf")


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (worst_case_sharpness, {"rho": 0.0}, "`rho` must be a finite number > 0"),
        (worst_case_sharpness, {"rho": float("inf")}, "`rho` must be a finite number > 0"),
        (worst_case_sharpness, {"steps": -1}, "`steps` must be >= 0"),
        (worst_case_sharpness, {"starts": 0}, "`starts` must be >= 1"),
        (worst_case_sharpness, {"norm": 1}, '`norm` must be 2 or "inf"'),
        (worst_case_sharpness, {"eta": -1.0}, "`eta` must be >= 0"),
        (average_case_sharpness, {"rho": -1.0}, "`rho` must be a finite number > 0"),
        (average_case_sharpness, {"probes": 7}, "`probes` must be >= 8"),
        (average_case_sharpness, {"confidence": 0.0}, "`confidence` must be between 0 and 1"),
    ],
)
def test_refusals(measure: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        measure(lambda: w.sum(), [w], **options)
