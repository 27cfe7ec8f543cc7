"""Losses with known Hessians, and Hessians by other ways."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same.curvature.eigenvalues import top_eigenvalue
from lightning_same.curvature.gradient import gradient_curvature
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.spectrum import hessian_trace, spectral_density

MEASURES = [top_eigenvalue, hessian_trace, spectral_density, gradient_curvature]


Loss = Callable[..., Tensor]


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
