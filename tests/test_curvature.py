"""Curvature against known spectra, closed forms in numpy, dense Hessians and differences of gradients."""

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import Ranks
from scipy.sparse.linalg import eigsh
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align

from lightning_same.curvature.eigenvalues import gradient_curvature, top_eigenvalue
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.lanczos import Lanczos
from lightning_same.curvature.spectrum import hessian_trace, spectral_density
from lightning_same.curvature.vectors import dots
from lightning_same.gradients.tensors import PIECE

MEASURES = [top_eigenvalue, hessian_trace, spectral_density, gradient_curvature]
Loss = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """What has not converged must say so, and nothing else may."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(eigenvalues: Sequence[float], dtype: torch.dtype = torch.float32) -> tuple[Loss, list[Tensor]]:
    """0.5 w'Hw with H diagonal: to Lanczos, which starts at random, any other basis is the same."""
    h = torch.tensor(eigenvalues, dtype=dtype)
    w = torch.ones(len(eigenvalues), dtype=dtype, requires_grad=True)
    return lambda: 0.5 * (h * w * w).sum(), [w]


def mlp(seed: int = 0, steps: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Loss, list[Tensor], Tensor, Tensor]:
    """477 parameters after some steps of SGD on noisy clusters; the loss takes a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, y = torch.randn(96, 12), torch.randint(5, (96,))
        x += 1.5 * torch.randn(5, 12)[y]
        net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        chosen = slice(step % 3 * 32, step % 3 * 32 + 32)
        optimizer.zero_grad()
        cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    optimizer.zero_grad()
    net.to(dtype)
    return lambda batch: cross_entropy(net(batch[0]), batch[1]), list(net.parameters()), x.to(dtype), y


def dense(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Tensor:
    """The Hessian by one pass per row."""
    grads = torch.autograd.grad(loss_fn(), params, create_graph=True)
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    rows = torch.autograd.grad(flat, params, torch.eye(len(flat), dtype=flat.dtype), is_grads_batched=True)
    return torch.cat([row.reshape(len(flat), -1) for row in rows], 1)


def difference(loss_fn: Callable[[], Tensor], params: Sequence[Tensor], vector: Tensor, eps: float = 1e-5) -> Tensor:
    """H v by first derivatives alone: (g(w + eps v) - g(w - eps v)) / 2 eps."""
    cuts = [c.view_as(p) for c, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]
    grads = []
    for step in (eps, -2 * eps, eps):
        grads.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(), params, materialize_grads=True)]))
        torch._foreach_add_([param.data for param in params], cuts, alpha=step)
    grads = grads[1:]
    return (grads[0] - grads[1]) / (2 * eps)


def assert_is_hessian(loss_fn: Callable[[], Tensor], params: list[Tensor], rtol: float = 1e-6) -> Tensor:
    """Compare a product with the difference of gradients, in float64."""
    hessian = Hessian(loss_fn, params)
    vector = torch.randn(hessian.size, generator=seeded(), dtype=torch.float64)
    product = hessian @ vector
    expected = difference(loss_fn, hessian.params, vector / vector.norm()) * vector.norm()
    assert product.dtype == torch.float64
    assert (product - expected).norm() <= rtol * expected.norm()
    return product


def assert_same(one: Any, other: Any) -> None:
    """To rounding. A quadrature's nodes that coincide to rounding may change places, with their weights."""
    for name, expected in one._asdict().items():
        if name not in ("nodes", "weights"):
            torch.testing.assert_close(
                torch.as_tensor(getattr(other, name)), torch.as_tensor(expected), rtol=1e-6, atol=1e-8, msg=name
            )


BULK = [0.1 * math.cos(k) for k in range(200)]
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
    """1,482 parameters on the digits, 5 states of training by 3 seeds of weights and start vectors."""
    errors, hvps = [], []
    x, y = (torch.tensor(each[:160]) for each in load_digits(return_X_y=True))
    x = x / 16
    for seed in range(3):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10)).double()
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


@pytest.mark.parametrize("measure", MEASURES)
def test_ragged_batches_weigh_by_their_samples(measure: Callable[..., Any]) -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    batches = [(x[:60], y[:60]), (x[60:95], y[60:95]), (x[95:], y[95:])]
    one, many = measure(loss_fn, params, [(x, y)]), measure(loss_fn, params, batches)
    assert_same(one, many)
    assert many.samples == 96


def test_samples_may_be_told() -> None:
    w = torch.ones(2, requires_grad=True)
    batches = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    hessian = Hessian(lambda h: 0.5 * (h * w * w).sum(), [w], batches, samples=[3, 1])
    assert (hessian @ torch.ones(2)).tolist() == [0.75, 0.25]
    assert hessian.samples == 4
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


@pytest.mark.parametrize("measure", MEASURES)
def test_what_has_no_second_derivative_is_refused(measure: Callable[..., Any]) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    w = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no second derivative .*once_differentiable.* Replace it"):
        measure(lambda: Once.apply(w).square().sum(), [w])

    def fused() -> Tensor:
        q = w.view(1, 1, 1, 3) * torch.ones(1, 1, 4, 3)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q * w, q)[0].square().sum()

    with pytest.raises(RuntimeError, match=r"no second derivative .*flash_attention.* Replace it"):
        measure(fused, [w])
    boxes = torch.tensor([[0.0, 0, 2, 2]])

    def pooled(image: Tensor) -> Tensor:
        return roi_align(image.view(1, 1, 3, 3), [boxes], 1).square().sum()

    with pytest.raises(RuntimeError, match=r"no second derivative .*roi_align.* Replace it"):
        measure(lambda: pooled(w[:, None] * w), [w])


class FusedCrossEntropy(torch.autograd.Function):
    """As fused kernels are written: the gradient is made in forward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward((logits.softmax(1) - nn.functional.one_hot(y, logits.shape[1])) / len(y))
        return cross_entropy(logits, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad, None


class UnderAutocast(FusedCrossEntropy):
    forward = staticmethod(torch.amp.custom_fwd(FusedCrossEntropy.forward, device_type="cpu"))
    backward = staticmethod(torch.amp.custom_bwd(FusedCrossEntropy.backward, device_type="cpu"))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", [FusedCrossEntropy, UnderAutocast])
def test_a_fused_loss_is_refused_by_its_name(measure: Callable[..., Any], kind: Any) -> None:
    """The gradient of a loss with respect to itself is the constant 1, so that autograd raises nothing."""
    w, x, y = torch.ones(3, 2, requires_grad=True), torch.eye(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(RuntimeError, match=rf"no second derivative .*{kind.__name__}.*once_differentiable.* Replace"):
        measure(lambda: kind.apply(x @ w, y), [w])


@pytest.mark.parametrize("of_input", [True, False])
def test_reentrant_checkpointing_is_refused_with_the_way_out(of_input: bool) -> None:
    net, y = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), torch.tensor([0, 1, 0, 1])
    x = torch.eye(4, 3).requires_grad_(of_input)

    def loss(reentrant: bool) -> Tensor:
        within = x if of_input else net[0](x)
        return cross_entropy(net[2](checkpoint(net[:2] if of_input else net[1], within, use_reentrant=reentrant)), y)

    with pytest.raises(RuntimeError, match=r"use_reentrant=True.* use_reentrant=False"):
        top_eigenvalue(lambda: loss(True), net)
    assert top_eigenvalue(lambda: loss(False), net)[:5] == pytest.approx(
        top_eigenvalue(lambda: cross_entropy(net(x), y), net)[:5], rel=1e-5
    )


def test_a_function_of_ones_own_is_warned_of() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad * ctx.saved_tensors[0]

    w = torch.ones(3, requires_grad=True)
    with pytest.warns(UserWarning, match=r"goes through .*Square.*gradgradcheck") as seen:
        assert top_eigenvalue(lambda: Square.apply(w).sum(), [w]).value == pytest.approx(2)
    assert len(seen) == 1


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


@pytest.mark.parametrize("measure", MEASURES)
def test_a_module_is_measured_in_eval_mode_and_gets_its_modes_back(measure: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    parts = [
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Tanh(),
        nn.Sequential(nn.Dropout(0.5)),
        nn.Linear(6, 3),
    ]
    net = nn.Sequential(*parts).double()
    x, y = 1 + 2 * torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    net(x)
    net.eval()
    expected = measure(lambda: cross_entropy(net(x), y), net.parameters())
    net.train()
    parts[1].eval()  # such as a frozen BatchNorm
    modes = [module.training for module in net.modules()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    assert_same(
        expected,
        measure(lambda batch: cross_entropy(net(batch[0]), batch[1]), net, [(x[:9], y[:9]), (x[9:], y[9:])])._replace(
            samples=1
        ),
    )
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))

    def fails() -> Tensor:
        raise OSError("no such sample")

    with pytest.raises(OSError, match="no such sample"):
        measure(fails, net)
    assert [module.training for module in net.modules()] == modes


def test_the_loss_is_the_mean_over_all_samples() -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    hessian = Hessian(loss_fn, params, [(x[:60], y[:60]), (x[60:], y[60:])])
    expected = loss_fn((x, y)).item()
    assert hessian.loss() == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        params[0].add_(1.0)
    assert hessian.loss() == pytest.approx(loss_fn((x, y)).item(), rel=1e-12)
    assert hessian.loss() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_is_disturbed_and_nothing_disturbs(measure: Callable[..., Any]) -> None:
    loss_fn, params, x, y = mlp(steps=20)
    batches = [(x[:50], y[:50]), (x[50:], y[50:])]
    params[0].grad = torch.ones_like(params[0])
    weights = [param.detach().clone() for param in params]
    state = torch.get_rng_state()
    expected = measure(loss_fn, params, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, params, strict=True))
    assert params[0].grad.eq(1).all()
    assert all(param.grad is None for param in params[1:])
    torch.rand(3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        again = measure(loss_fn, params, batches)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(expected, again, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


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


@pytest.mark.parametrize("loss_fn", [lambda w: w.sum(), lambda w: (0 * w * w).sum(), lambda w: w.square().sum() * 0])
def test_no_curvature(loss_fn: Loss) -> None:
    w = torch.ones(5, requires_grad=True)
    top = top_eigenvalue(lambda: loss_fn(w), [w])
    assert top[:5] == (0, 0, 0, 1, True)
    assert hessian_trace(lambda: loss_fn(w), [w])[:4] == (0, 0, 0, 0)
    value = gradient_curvature(lambda: loss_fn(w), [w]).value
    assert value == 0 if loss_fn(w) != 0 else math.isnan(value)


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


def ragged(rank: int, share: list[list[int]]) -> tuple[Any, ...]:
    """What one process measures on its batches, and the sizes of what it reduces for the top eigenvalue."""
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    cuts = torch.tensor(share[rank])
    batches = [(x[a:b], y[a:b]) for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]
    sizes = []

    def reduce(flat: Tensor) -> Tensor:
        assert flat.ndim == 1
        sizes.append(flat.numel())
        torch.distributed.all_reduce(flat)
        return flat

    top = top_eigenvalue(loss_fn, params, batches, reduce=reduce)
    large = sum(size == sum(param.numel() for param in params) for size in sizes)
    return top, large, *(measure(loss_fn, params, batches, reduce=reduce) for measure in MEASURES[1:])


def by_rank(share: list[list[int]]) -> tuple[Any, ...]:
    return ragged(torch.distributed.get_rank(), share)


@pytest.mark.parametrize("share", [[[0, 50], [50, 96]], [[0, 10, 40, 95], [95, 96]], [[0, 60, 96], []]], ids=str)
def test_processes_with_ragged_shares_measure_the_union(ranks: dict[int, Ranks], share: list[list[int]]) -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    first, second = ranks[2].run(by_rank, share)
    for one, other in zip(first[0], second[0], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert first[1] == first[0].hvps
    for measure, found in zip(MEASURES, (first[0], *first[2:]), strict=True):
        assert_same(measure(loss_fn, params, [(x, y)]), found)


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


W = torch.ones(2, requires_grad=True)
TWO = [torch.ones(2), torch.ones(3)]


def never(*args: Any) -> Tensor:
    raise AssertionError("refused before the loss is asked for")


@pytest.mark.parametrize(
    ("measure", "args", "options", "message"),
    [
        (Hessian, ([torch.ones(2)],), {}, "no tensor that requires a gradient"),
        (Hessian, ([],), {}, "no tensor that requires a gradient"),
        (Hessian, ([torch.ones(2, dtype=torch.cfloat, requires_grad=True)],), {}, "complex"),
        (Hessian, ([W], [(torch.ones(2), torch.ones(3))]), {}, r"unclear.*\[2, 3\]"),
        (Hessian, ([W], ["text"]), {}, "unclear"),
        (Hessian, ([W], TWO), {"samples": [1]}, "2 numbers"),
        (Hessian, ([W], TWO), {"samples": [1, -1]}, "2 numbers"),
        (Hessian, ([W],), {"reduce": never}, "by `samples` how many"),
        (Hessian, ([W], []), {}, "not one sample"),
        (Hessian, ([W],), {"samples": 0}, "not one sample"),
        (top_eigenvalue, ([W],), {"tolerance": 0.0}, "`tolerance` must be > 0"),
        (top_eigenvalue, ([W],), {"max_products": 0}, "`max_products` must be >= 1"),
        (top_eigenvalue, ([W],), {"start": torch.ones(3)}, r"`start` must have shape \(2,\), got \(3,\)"),
        (hessian_trace, ([W],), {"probes": 7}, "`probes` must be >= 8"),
        (hessian_trace, ([W],), {"confidence": 1.0}, "`confidence` must be between 0 and 1"),
        (spectral_density, ([W],), {"probes": 0}, "`probes` must be >= 1"),
        (spectral_density, ([W],), {"steps": 0}, "`steps` must be >= 1"),
        (spectral_density, ([W],), {"points": 1}, "`points` must be >= 2"),
        (spectral_density, ([W],), {"width": 0.0}, "`width` must be > 0"),
    ],
)
def test_refusals(measure: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(never, *args, **options)


def test_a_loader_is_no_sequence_and_a_vector_has_a_shape() -> None:
    with pytest.raises(TypeError, match="must be a sequence, got generator"):
        top_eigenvalue(never, [W], (batch for batch in TWO))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        Hessian(never, [W]) @ torch.ones(3)
