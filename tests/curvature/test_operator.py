"""The measures of an operator: a Hessian that serves them all, or a matrix of one's own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same import Hessian, gradient_curvature, hessian_trace, spectral_density, top_eigenvalue
from lightning_same.curvature.protocol import LossOperator, Operator

MEASURES = [top_eigenvalue, hessian_trace, spectral_density, gradient_curvature]


class Matrix:
    """A symmetric matrix, and a gradient: the protocol and nothing else."""

    def __init__(self, matrix: np.ndarray, gradient: np.ndarray) -> None:
        self.matrix = torch.tensor(matrix)
        self.slope = torch.tensor(gradient)
        self.size, self.device, self.dtype, self.samples = len(matrix), torch.device("cpu"), torch.float64, 7

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def mean_over_processes(self, scalars: Tensor) -> Tensor:
        return scalars

    def gradient(self) -> Tensor:
        return self.slope


def digits_net(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        return net, torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3


def test_a_matrix_of_ones_own_against_numpy() -> None:
    rng = np.random.default_rng(0)
    a, g = rng.normal(size=(40, 40)), rng.normal(size=40)
    h = a + a.T + 30 * np.outer(g, g) / (g @ g)
    operator = Matrix(h, g)
    eigenvalues = np.linalg.eigvalsh(h)
    top = top_eigenvalue(operator, tolerance=1e-9, both_ends=True, max_products=40)
    np.testing.assert_allclose((top.bottom, top.value), eigenvalues[[0, -1]], rtol=1e-12)
    assert top.samples == 7
    trace = hessian_trace(operator, probes=400)
    assert trace.low < np.trace(h) < trace.high
    density = spectral_density(operator, probes=2, steps=40)
    np.testing.assert_allclose(density.nodes.reshape(40, 2).mean(1), eigenvalues, rtol=1e-9)
    along = gradient_curvature(operator)
    np.testing.assert_allclose((along.value, along.grad_norm), (g @ h @ g / (g @ g), np.linalg.norm(g)), rtol=1e-12)
    assert (top.hvps, trace.hvps, density.hvps, along.hvps) == (top.hvps, 400, 80, 1)


def test_the_protocols_are_those_of_the_hessian() -> None:
    """For mypy as much as for the measures."""
    net, x, y = digits_net()
    hessian = Hessian(lambda: cross_entropy(net(x), y), net)
    operator: Operator = hessian
    with_gradient: LossOperator = hessian
    assert top_eigenvalue(operator).value == top_eigenvalue(with_gradient).value


@pytest.mark.parametrize("measure", MEASURES)
def test_an_operator_and_its_arguments_give_the_same(measure: Callable[..., Any]) -> None:
    net, x, y = digits_net()
    batches = [(x[:12], y[:12]), (x[12:], y[12:])]

    def loss_fn(batch: Any) -> Tensor:
        return cross_entropy(net(batch[0]), batch[1])

    by_operator = measure(Hessian(loss_fn, net, batches, samples=[24, 16]), **OPTIONS[measure])
    by_position = measure(loss_fn, net, batches, samples=[24, 16], **OPTIONS[measure])
    by_name = measure(loss_fn=loss_fn, params=net, batches=batches, samples=[24, 16], **OPTIONS[measure])
    assert by_operator.samples == 40
    for expected, *others in zip(by_operator, by_position, by_name, strict=True):
        assert all(torch.equal(torch.as_tensor(expected), torch.as_tensor(other)) for other in others)


OPTIONS: dict[Any, dict[str, Any]] = {
    top_eigenvalue: {"seed": 3, "tolerance": 1e-5},
    hessian_trace: {"seed": 3, "probes": 9},
    spectral_density: {"seed": 3, "steps": 5, "probes": 2},
    gradient_curvature: {},
}


def test_one_hessian_serves_all_measures_with_one_graph() -> None:
    net, x, y = digits_net()
    forwards = []

    def loss_fn() -> Tensor:
        forwards.append(1)
        return cross_entropy(net(x), y)

    hessian = Hessian(loss_fn, net)
    results = [measure(hessian) for measure in MEASURES]
    assert len(forwards) == 1
    assert hessian.hvps == sum(result.hvps for result in results)
    for measure, result in zip(MEASURES, results, strict=True):
        apart = measure(loss_fn, net)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(result, apart, strict=True)), (
            measure
        )


@pytest.mark.parametrize("measure", MEASURES)
def test_neither_an_operator_nor_a_loss_with_its_parameters(measure: Callable[..., Any]) -> None:
    name = measure.__name__
    with pytest.raises(TypeError, match=rf"{name}: expected a Hessian .* got function\. .* {name}\(loss_fn, params\)"):
        measure(lambda: torch.ones(()))
    net, _, _ = digits_net()
    with pytest.raises(TypeError, match="params"):
        measure(Hessian(lambda: torch.ones(()), net), samples=3)
