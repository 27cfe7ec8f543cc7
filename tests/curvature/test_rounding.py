"""Where float32 cannot tell: cross-entropy late in training, against Hessians in numpy and in float64."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.hessians import quadratic
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same import AdaptiveHessian, Hessian, gradient_curvature, top_eigenvalue

CLASSES, FEATURES, SAMPLES = 4, 6, 40
LATE = (1e-6, 1e-7)


class Softmax:
    """Softmax regression: loss, gradient and Hessian in numpy, at weights that float32 holds."""

    def __init__(self, target: float) -> None:
        rng = np.random.default_rng(0)
        centres = 3 * np.linalg.qr(rng.normal(size=(FEATURES, CLASSES)))[0].T
        self.y = np.arange(SAMPLES) % CLASSES
        self.x = (centres[self.y] + 0.3 * rng.normal(size=(SAMPLES, FEATURES))).astype(np.float32).astype(float)
        low, high = 0.0, 10.0
        for _ in range(60):  # the weights grow until the loss is there
            middle = (low + high) / 2
            self.w = (middle * centres).astype(np.float32).astype(float)
            low, high = (middle, high) if self.loss() > target else (low, middle)

    def missing(self) -> np.ndarray:
        """1 - p of the right class, without cancellation, and p of the others."""
        logits = self.x @ self.w.T
        odds = np.exp(logits - logits[np.arange(SAMPLES), self.y][:, None])
        odds[np.arange(SAMPLES), self.y] = 0
        self.total = 1 + odds.sum(1, keepdims=True)
        return odds / self.total

    def loss(self) -> float:
        others = self.missing()
        return float(np.log(self.total).mean()) if others.size else 0.0

    def derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        others = self.missing()
        right = np.eye(CLASSES)[self.y]
        slope = others - right * others.sum(1, keepdims=True)  # p - y
        p = others + right / self.total
        gradient = np.einsum("nc,nf->cf", slope, self.x).ravel() / SAMPLES
        # diag(p) - pp': off the diagonal products, on it what makes every row sum to 0.
        block = -p[:, :, None] * p[:, None, :]
        for k in range(CLASSES):
            block[:, k, k] = 0
            block[:, k, k] = -block[:, k, :].sum(1)
        hessian = np.einsum("nab,nf,ng->afbg", block, self.x, self.x) / SAMPLES
        return gradient, hessian.reshape(CLASSES * FEATURES, -1)

    def torch(self) -> tuple[Callable[[Any], Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        w = torch.tensor(self.w, dtype=torch.float32, requires_grad=True)
        x, y = torch.tensor(self.x, dtype=torch.float32), torch.tensor(self.y)
        return lambda batch: cross_entropy(batch[0] @ w.T, batch[1]), [w], [(x, y)]


@pytest.mark.parametrize("target", LATE)
def test_float32_does_not_claim_what_rounding_has_eaten(target: float) -> None:
    problem = Softmax(target)
    eigenvalues = np.linalg.eigvalsh(problem.derivatives()[1])
    assert problem.loss() == pytest.approx(target, rel=0.1)
    errors = []
    for seed in range(20):
        with pytest.warns(UserWarning, match=r'error by rounding may be .*`dtype="float64"`, or "auto"'):
            top = top_eigenvalue(*problem.torch(), seed=seed)
        assert not top.converged
        assert top.rounding > 2e-3 * top.value
        assert np.abs(eigenvalues - top.value).min() <= top.residual
        errors.append(abs(top.value / eigenvalues[-1] - 1))
    assert target > 1e-7 or max(errors) > 2e-3  # so that the flag has a reason


@pytest.mark.parametrize("target", LATE)
@pytest.mark.parametrize("dtype", ["float64", torch.float64, "auto"])
def test_float64_sees_what_float32_does_not(target: float, dtype: Any) -> None:
    problem = Softmax(target)
    gradient, hessian = problem.derivatives()
    eigenvalues = np.linalg.eigvalsh(hessian)
    loss_fn, params, batches = problem.torch()
    top = top_eigenvalue(loss_fn, params, batches, dtype=dtype, tolerance=1e-4)
    assert top.converged
    assert top.value == pytest.approx(eigenvalues[-1], rel=1e-6)
    assert top.rounding < 1e-5 * top.value
    along = gradient_curvature(loss_fn, params, batches, dtype=dtype)
    assert along.value == pytest.approx(gradient @ hessian @ gradient / (gradient @ gradient), rel=1e-5)
    assert along.grad_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_in_the_middle_of_training_float32_is_enough_and_is_known_to_be() -> None:
    problem = Softmax(0.1)
    loss_fn, params, batches = problem.torch()
    dtypes: list[torch.dtype] = []

    def watched(batch: Any) -> Tensor:
        loss = loss_fn(batch)
        dtypes.append(loss.dtype)
        return loss

    top = top_eigenvalue(watched, params, batches, dtype="auto")
    assert dtypes == [torch.float32]
    assert top.converged
    error = abs(top.value - np.linalg.eigvalsh(problem.derivatives()[1])[-1])
    assert error <= max(top.residual, 2e-5 * top.value)
    assert 1e-8 * top.value < top.rounding < 1e-4 * top.value


def test_the_estimate_for_the_gradients_curvature_covers_its_error() -> None:
    for target in (0.1, 1e-3, 1e-5, 1e-6, 1e-7):
        problem = Softmax(target)
        gradient, hessian = problem.derivatives()
        exact = gradient @ hessian @ gradient / (gradient @ gradient)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            along = gradient_curvature(*problem.torch())
        assert abs(along.value - exact) <= along.rounding
        told = [warning for warning in seen if "error by rounding may be" in str(warning.message)]
        assert bool(told) is (along.rounding > 2e-3 * abs(along.value))
        assert bool(told) is (target <= 1e-6) or target == 1e-5


def test_of_the_scale_invariant_hessian_the_scaled_gradients_are_compared() -> None:
    problem = Softmax(0.1)
    scale = np.abs(problem.w.ravel())
    gradient, hessian = problem.derivatives()
    gradient, hessian = scale * gradient, scale[:, None] * hessian * scale
    along = gradient_curvature(AdaptiveHessian(Hessian(*problem.torch())))
    exact = gradient @ hessian @ gradient / (gradient @ gradient)
    assert abs(along.value - exact) <= along.rounding <= 1e-4 * exact


def test_the_estimate_for_the_gradients_curvature_covers_what_turns_the_gradient() -> None:
    """Where g'Hg is nearly 0 and H g is not, an error of g across H g is nearly all there is."""
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        size, weights = 0.5 + torch.rand(20, generator=random), torch.randn(20, generator=random)
        curvatures = torch.cat([size, -size])
        w = torch.cat([weights, weights * (1 + 1e-3 * torch.randn(20, generator=random))]).requires_grad_()
        a, b = curvatures.double().numpy(), w.detach().double().numpy()
        exact = (a**3 * b**2).sum() / (a**2 * b**2).sum()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            along = gradient_curvature(lambda: 0.5 * (curvatures * w**2).sum(), [w])  # noqa: B023
        error = abs(along.value - exact)
        assert error <= along.rounding <= 1e3 * torch.finfo(torch.float32).eps


def test_a_tolerance_below_rounding_is_not_met() -> None:
    spectrum = [3.0, 1.0, *np.linspace(-0.5, 0.5, 60)]
    loss_fn, params = quadratic(spectrum)
    with pytest.warns(UserWarning, match="error by rounding"):
        assert not top_eigenvalue(loss_fn, params, tolerance=1e-8).converged
    top = top_eigenvalue(loss_fn, params, tolerance=1e-8, dtype="auto")
    assert top.converged
    assert top.value == pytest.approx(3, rel=1e-12)
    assert top.vector.dtype == torch.float64


def test_asymmetric_products_are_heard() -> None:
    """Noise of 1e-3 in every product, which an operator does not announce."""

    class Noisy:
        size, device, dtype, samples = 50, torch.device("cpu"), torch.float64, 1

        def __init__(self, noise: float) -> None:
            self.noise, self.generator = noise, torch.Generator().manual_seed(0)

        def __matmul__(self, vector: Tensor) -> Tensor:
            exact = torch.linspace(0, 1, 50, dtype=torch.float64) ** 4 * vector
            return exact + self.noise * torch.randn(50, generator=self.generator, dtype=torch.float64) / 50**0.5

        def mean_over_processes(self, scalars: Tensor) -> Tensor:
            return scalars

    assert top_eigenvalue(Noisy(0.0)).converged
    for noise in (1e-2, 1e-3):
        with pytest.warns(UserWarning, match="Products are asymmetric"):
            top = top_eigenvalue(Noisy(noise), max_products=20)
        assert not top.converged
        assert abs(top.value - 1) <= top.residual
        assert top.rounding > noise / 2


class HalfDerived(torch.autograd.Function):
    """x * y, of whose derivatives the second takes x for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return grad * y, grad * x.detach()


def test_a_wrong_second_derivative_is_told_from_rounding() -> None:
    warnings.filterwarnings("ignore", "Hessian: the loss goes through")
    x, y = (torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(2))

    def loss_fn() -> Tensor:
        return HalfDerived.apply(x * 1, y * 1).pow(2).sum()

    with pytest.warns(UserWarning, match=r"second derivative of an operation is wrong.*gradgradcheck"):
        assert not top_eigenvalue(loss_fn, [x.requires_grad_(), y.requires_grad_()]).converged


def test_the_scale_invariant_hessian_is_measured_in_float64_too() -> None:
    problem = Softmax(1e-6)
    _, hessian = problem.derivatives()
    scale = np.abs(problem.w.ravel())
    exact = np.linalg.eigvalsh(scale[:, None] * hessian * scale)[-1]
    for dtype in ("float64", "auto"):
        top = top_eigenvalue(AdaptiveHessian(Hessian(*problem.torch(), dtype=dtype)))
        assert top.converged
        assert top.value == pytest.approx(exact, rel=1e-4)


def test_what_cannot_be_had_in_float64_stays_unconverged() -> None:
    problem = Softmax(1e-6)
    loss_fn, params, batches = problem.torch()

    def only_float32(batch: Any) -> Tensor:
        if batch[0].dtype != torch.float32 or (batch[0] @ params[0].T).dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found Double")
        return loss_fn(batch)

    with pytest.warns(UserWarning, match="error by rounding"):
        assert not top_eigenvalue(only_float32, params, batches, dtype="auto").converged
    along = gradient_curvature(only_float32, params, batches)
    assert np.isnan(along.rounding)
    with pytest.raises(RuntimeError, match=r"cannot be had in float64. Leave `dtype` out"):
        top_eigenvalue(only_float32, params, batches, dtype="float64")


def test_an_unknown_dtype_is_refused() -> None:
    net = nn.Linear(2, 1)
    for dtype in ("float16", torch.float32, 64):
        with pytest.raises(ValueError, match=r'`dtype` must be "auto", "float64"'):
            Hessian(lambda: net(torch.ones(1, 2)).sum(), net, dtype=dtype)  # type: ignore[arg-type]
