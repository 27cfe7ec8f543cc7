"""A model in float32 measured in float64: as its copy by ``.double()``, and the model is none the wiser."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.hessians import MEASURES, dense, difference, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lightning_same import Hessian, gradient_curvature, top_eigenvalue
from lightning_same.curvature.float64 import Float64Error


class Attention(nn.Module):
    """One layer with the fused kernel; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.register_buffer("mask", torch.triu(torch.full((5, 5), -torch.inf), 1))
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return x @ self.embedding.weight.T


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(11, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(11, 3), nn.Flatten(), nn.Linear(15, 6), nn.BatchNorm1d(6), nn.GELU())
        self.head = nn.Linear(6, 55)
        nn.utils.parametrize.register_parametrization(self.head, "weight", Doubled())
        self.body[2].bias.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens)).view(-1, 5, 11)


MODELS = [Attention, Recurrent, Encoder, Normed]


def losses(kind: type[nn.Module]) -> Iterator[tuple[nn.Module, Callable[[Any], Tensor], list[Tensor]]]:
    """A model in float32, and its copy in float64."""
    torch.manual_seed(0)
    net = kind()
    tokens = torch.randint(11, (7, 6), generator=seeded())
    for _ in range(20):
        net(tokens[:, :-1])  # running statistics
    net.eval()

    def loss_of(model: nn.Module) -> Callable[[Any], Tensor]:
        return lambda batch: cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    for model in (net, copy.deepcopy(net).double()):
        yield model, loss_of(model), [tokens[:4], tokens[4:]]


@pytest.mark.parametrize("kind", MODELS)
def test_products_are_those_of_the_model_in_float64(kind: type[nn.Module]) -> None:
    (net, loss_fn, batches), (double, double_loss, _) = losses(kind)
    hessian = Hessian(loss_fn, net, batches, dtype="float64")
    expected = Hessian(double_loss, double, batches)
    vector = torch.randn(hessian.size, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(hessian @ vector, expected @ vector, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(hessian.gradient(), expected.gradient(), rtol=1e-12, atol=1e-13)
    assert hessian.loss() == pytest.approx(expected.loss(), rel=1e-13)
    loss, gradient = hessian.loss_and_gradient()
    assert loss == pytest.approx(expected.loss(), rel=1e-13)
    torch.testing.assert_close(gradient, expected.gradient(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", MODELS)
def test_products_are_differences_of_gradients(kind: type[nn.Module]) -> None:
    """The oracle that knows no second derivative: torch.func.hessian is off by 1e-2 through LayerNorm in torch 2.14."""
    (net, loss_fn, batches), (double, double_loss, _) = losses(kind)
    hessian = Hessian(loss_fn, net, batches[:1], dtype="float64")
    params = [param for param in double.parameters() if param.requires_grad]
    vector = torch.randn(hessian.size, generator=seeded(), dtype=torch.float64)
    vector /= vector.norm()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = difference(lambda: double_loss(batches[0]), params, vector, eps=1e-4)
    assert (hessian @ vector - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_model_is_left_as_it_is(measure: Callable[..., Any], kind: type[nn.Module]) -> None:
    (net, loss_fn, batches), _ = losses(kind)
    net.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    params, grads = list(net.parameters()), [torch.ones_like(param) for param in net.parameters()]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    numbers = torch.get_rng_state()
    measure(loss_fn, net, batches, dtype="float64")
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(a is b for a, b in zip(params, net.parameters(), strict=True))
    assert all(param.dtype == torch.float32 and param.grad is grad for param, grad in zip(params, grads, strict=True))
    assert all(module.training for module in net.modules())


def test_a_loss_that_holds_its_data_and_constants() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, weight, y = torch.randn(5, 3), torch.tensor([1.0, 2.0]), torch.arange(5) % 2
    penalty = torch.full((4, 3), 0.1)

    def loss_of(model: nn.Sequential, data: Callable[[Tensor], Tensor]) -> Tensor:
        inputs = data(x).clone()
        inputs -= data(x).mean(0)  # in place
        inputs.mul_(0.5)
        decay = (model[0].weight.square() * data(penalty)).sum()
        return cross_entropy(model(inputs), y, data(weight)) + decay + torch.zeros(1).sum()

    double = copy.deepcopy(net).double()
    hessian = Hessian(lambda: loss_of(net, lambda tensor: tensor), net, dtype="float64")
    exact = dense(lambda: loss_of(double, Tensor.double), list(double.parameters()))
    for k in range(3):
        vector = torch.eye(hessian.size, dtype=torch.float64)[k]
        torch.testing.assert_close(hessian @ vector, exact[k], rtol=1e-12, atol=1e-14)


def test_what_a_forward_writes_to_keeps_its_dtype() -> None:
    w, average = torch.full((3,), 1 / 3, requires_grad=True), torch.zeros(3)

    def loss_fn() -> Tensor:
        with torch.no_grad():
            average.lerp_(w, 0.5)
            torch._foreach_copy_([average], [w * 3])
            torch.mul(w, 2, out=average)
        return (w * w * w).sum() + average.sum()

    hessian = Hessian(loss_fn, [w], dtype="float64")
    assert (hessian @ torch.ones(3, dtype=torch.float64)).tolist() == pytest.approx([6 * w[0].item()] * 3, rel=1e-14)
    assert average.dtype == torch.float32
    assert average.tolist() == pytest.approx([2 / 3] * 3)


def test_parameters_in_float64_need_no_copy() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    kinds = []

    def loss_fn() -> Tensor:
        kinds.append(w is W[0])
        return w.pow(4).sum()

    W = [w]
    assert top_eigenvalue(loss_fn, [w], dtype="float64").value == pytest.approx(12)
    assert Hessian(loss_fn, [w], dtype="auto").finer is None
    half = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    hessian = Hessian(lambda: (half * 1.1).pow(4).sum(), [half], dtype="float64")
    assert (hessian @ torch.ones(3, dtype=torch.float64)).tolist() == pytest.approx([12 * 1.1**4] * 3, rel=1e-14)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def test_a_dtype_asked_for_by_name_is_float64_too() -> None:
    w = torch.full((3,), 1 / 3, requires_grad=True)
    for cast in (Tensor.float, Tensor.half, lambda x: x.to(torch.float32), lambda x: x.to(dtype=torch.float16)):
        hessian = Hessian(lambda cast=cast: cast(w * 0.1).pow(3).sum(), [w], dtype="float64")
        product = hessian @ torch.ones(3, dtype=torch.float64)
        assert product.tolist() == pytest.approx([6 * 0.1**3 * w[0].item()] * 3, rel=1e-14)


def test_a_parameter_that_no_copy_replaces_is_refused() -> None:
    """A Function takes the parameter itself: the derivative by the copy would be zero, and nothing would say so."""
    warnings.filterwarnings("ignore", "Hessian: the loss goes through")
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"gives the parameter itself to a torch.autograd.Function"):
        top_eigenvalue(lambda: Double.apply(w).square().sum(), [w], dtype="float64")
    assert top_eigenvalue(lambda: Double.apply(w * 1).square().sum(), [w], dtype="float64").value == pytest.approx(8)


def test_checkpointing_is_refused_with_the_way_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 3)

    def loss_fn() -> Tensor:
        return checkpoint(net, x, use_reentrant=False).square().mean()

    with pytest.raises(RuntimeError, match=r"activation checkpointing .*Switch it off"):
        top_eigenvalue(loss_fn, net, dtype="float64")
    assert top_eigenvalue(loss_fn, net, dtype="auto").converged  # which does without


def test_a_checkpointed_layer_that_refuses_its_recomputation_is_one_that_float64_lacks() -> None:
    """Beside weights that are used outside of it, whose gradient is had before."""
    first, last = nn.Linear(3, 4), nn.Linear(4, 1)
    x = torch.randn(5, 3)

    def loss_fn() -> Tensor:
        return last(checkpoint(lambda z: torch.tanh(first(z)), x, use_reentrant=False)).square().mean()

    params = [*first.parameters(), *last.parameters()]
    with pytest.raises(Float64Error, match=r"activation checkpointing .*Switch it off"):
        Hessian(loss_fn, params, dtype="float64").gradient()
    assert math.isnan(gradient_curvature(loss_fn, params).rounding)


def test_dropout_draws_the_same_numbers_in_every_product() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))
    x = torch.randn(8, 4)
    hessian = Hessian(lambda batch: net(batch).square().mean(), net.parameters(), [x[:4], x[4:]], dtype="float64")
    u, v = torch.randn(2, hessian.size, dtype=torch.float64)
    first = hessian @ v
    assert torch.equal(hessian @ v, first)
    assert u @ first == pytest.approx((v @ (hessian @ u)).item(), rel=1e-12)


def test_in_float64_the_loss_draws_what_it_has_drawn_before() -> None:
    """Whatever others have drawn in between."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))
    x = torch.randn(8, 4)
    hessian = Hessian(lambda: net(x).square().mean(), net.parameters(), dtype="auto")
    torch.rand(7)
    finer = hessian.finer
    assert finer is not None
    assert finer.loss() == pytest.approx(hessian.loss(), rel=1e-5)
    torch.testing.assert_close(finer.gradient().float(), hessian.gradient(), rtol=1e-4, atol=1e-6)
