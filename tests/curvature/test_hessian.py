"""Products with the Hessian, against differences of gradients; batches, parameters and random numbers."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.hessians import assert_is_hessian, dense, mlp, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same.curvature.eigenvalues import top_eigenvalue
from lightning_same.curvature.hessian import Hessian


def test_samples_may_be_told() -> None:
    w = torch.ones(2, requires_grad=True)
    batches = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    hessian = Hessian(lambda h: 0.5 * (h * w * w).sum(), [w], batches, samples=[3, 1])
    assert (hessian @ torch.ones(2)).tolist() == [0.75, 0.25]
    assert hessian.samples == 4
    hessian = Hessian(lambda h: 0.5 * (h * w * w).sum(), [w], batches, samples=[0, 2])  # as on padding
    assert (hessian @ torch.ones(2)).tolist() == [0.0, 1.0]
    assert hessian.samples == 2
    nested = {"x": [torch.ones(5, 2), (torch.ones(5),)], "scale": torch.ones(()), "name": "n", "n": 3}
    assert Hessian(lambda batch: w.sum(), [w], [nested, nested]).samples == 10
    assert Hessian(lambda: w.sum(), [w]).samples == 1
    assert Hessian(lambda: w.sum(), [w], samples=12).samples == 12


def test_one_graph_for_one_batch_and_none_kept_for_many() -> None:
    loss_fn, params, x, y = mlp(steps=20)
    calls = []

    def counted(batch: Any) -> Tensor:
        calls.append(len(batch[0]))
        return loss_fn(batch)

    assert top_eigenvalue(counted, params, [(x, y)]).hvps > 1
    assert calls == [96]
    calls.clear()
    top = top_eigenvalue(counted, params, [(x[:50], y[:50]), (x[50:], y[50:])])
    assert calls == [50, 46] * top.hvps


def test_tied_frozen_unused_and_linear_parameters() -> None:
    tied, frozen, unused, linear = (torch.randn(3, generator=seeded(k), dtype=torch.float64) for k in range(4))
    params = [tied.requires_grad_(), frozen, unused.requires_grad_(), tied, linear.requires_grad_()]

    def loss_fn() -> Tensor:
        return (tied.prod() * frozen).sum() + tied.pow(4).sum() + linear.sum() * 2

    hessian = Hessian(loss_fn, iter(params))
    assert [param is tied for param in hessian.params] == [True, False, False]
    product = assert_is_hessian(loss_fn, params)
    assert hessian.size == 9
    assert product[:3].all()
    assert not product[3:].any()
    block = dense(lambda: (tied.prod() * frozen).sum() + tied.pow(4).sum(), [tied])
    assert top_eigenvalue(loss_fn, params).value == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-3)


class TiedLanguageModel(nn.Module):
    """Attention by the fused kernel, which has no second derivative; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


@pytest.mark.parametrize("kind", [TiedLanguageModel, Recurrent])
def test_sequence_models(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind().double().eval()
    tokens = torch.randint(11, (4, 6), generator=seeded())

    def loss_fn() -> Tensor:
        return cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    assert_is_hessian(loss_fn, list(net.parameters()), rtol=1e-5)
    with pytest.warns(UserWarning, match="not converged"):
        assert not top_eigenvalue(loss_fn, net.parameters(), max_products=2).converged
    assert top_eigenvalue(loss_fn, net.parameters()).converged


@pytest.mark.parametrize("train", [True, False])
def test_batchnorm_stays_in_the_mode_that_it_was_given(train: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(48, 4)).double()
    net.train(train)
    x, y = torch.randn(6, 2, 6, 6, dtype=torch.float64), torch.arange(6) % 4
    modes = {name: module.training for name, module in net.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert_is_hessian(lambda: cross_entropy(net(x), y), list(net.parameters()))
    assert {name: module.training for name, module in net.named_modules()} == modes
    unchanged = all(torch.equal(buffers[name], buffer) for name, buffer in net.named_buffers())
    assert unchanged is not train


def test_the_loss_is_the_mean_over_all_samples() -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    hessian = Hessian(loss_fn, params, [(x[:60], y[:60]), (x[60:], y[60:])])
    expected = loss_fn((x, y)).item()
    assert hessian.loss() == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        params[0].add_(1.0)
    assert hessian.loss() == pytest.approx(loss_fn((x, y)).item(), rel=1e-12)
    assert hessian.loss() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_numbers_that_are_not_torchs_are_the_same_in_every_product_too(draw: Callable[[], float]) -> None:
    """Each loss is another multiple of one quadratic."""
    param = torch.ones(2, dtype=torch.float64, requires_grad=True)
    hessian = Hessian(lambda: (1 + draw()) * param.square().sum(), [param])
    vector = torch.tensor([1.0, 2.0], dtype=torch.float64)
    first = hessian @ vector
    random.seed(3)
    np.random.seed(3)
    expected = [draw(), draw()]
    random.seed(3)
    np.random.seed(3)
    found = [draw()]
    assert torch.equal(hessian @ vector, first)
    assert [*found, draw()] == expected


def test_random_numbers_are_the_same_in_every_product() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    hessian = Hessian(lambda batch: net(batch).square().mean(), net.parameters(), [x[:4], x[4:]])
    u, v = torch.randn(2, hessian.size, dtype=torch.float64)
    first = hessian @ v
    state = torch.get_rng_state()
    assert torch.equal(hessian @ v, first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(hessian @ v, first)
    assert u @ first == pytest.approx((v @ (hessian @ u)).item(), rel=1e-12)


def test_a_compiled_module_runs_eagerly() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    net = nn.Linear(3, 1)
    compiled = torch.compile(net, backend=backend)
    top = top_eigenvalue(lambda: compiled(torch.ones(2, 3)).square().mean(), net.parameters())
    assert top.value == pytest.approx(8, rel=1e-5)  # L = z^2 for z = w1 + w2 + w3 + b


def test_a_change_of_the_weights_is_noticed() -> None:
    w = torch.ones(2, requires_grad=True)
    hessian = Hessian(lambda: w.pow(3).sum(), [w])
    assert (hessian @ torch.ones(2)).tolist() == [6, 6]
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hessian @ torch.ones(2)


def test_parameters_of_several_dtypes() -> None:
    a, b = (torch.ones(2, dtype=dtype, requires_grad=True) for dtype in (torch.float64, torch.bfloat16))
    hessian = Hessian(lambda: (a * b).sum(), [a, b])
    product = hessian @ torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert product.dtype == torch.float64
    assert product.tolist() == [3, 4, 1, 2]
    assert Hessian(lambda: b.sum(), [b]).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_of_one_element_may_have_any_shape(shape: tuple[int, ...]) -> None:
    """As Lightning, which takes whatever `backward` takes."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    hessian = Hessian(lambda: w.square().sum().view(shape), [w])
    loss, gradient = hessian.loss_and_gradient()
    assert (hessian.loss(), loss, gradient.tolist()) == (5.0, 5.0, [2.0, 4.0])
    assert top_eigenvalue(hessian).value == pytest.approx(2.0)
