"""The Hessian's whole spectrum from random probes: its trace and its density. Plain torch.

Probes come from a generator of their own, on the CPU, as the start vectors of `curvature` do.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.lanczos import Lanczos, dots


class HessianTrace(NamedTuple):
    """Estimate of the sum of all eigenvalues.

    Attributes:
        value: the estimate, without bias.
        low: lower end of the confidence interval.
        high: its upper end.
        standard_error: standard deviation of ``value``, estimated from the probes.
        hvps: Hessian-vector products taken.
        samples: number of samples that the loss is a mean over, on all processes.
    """

    value: float
    low: float
    high: float
    standard_error: float
    hvps: int
    samples: int


class SpectralDensity(NamedTuple):
    """How the eigenvalues are distributed. Tensors are float64 on the CPU.

    Attributes:
        grid: shape (points,): eigenvalues, ascending.
        density: shape (points,): share of the eigenvalues per unit of ``grid``; integrates to 1.
        nodes: shape (nodes,): the quadrature's eigenvalues, ascending.
        weights: shape (nodes,): their shares; sum to 1. ``(weights * f(nodes)).sum()`` estimates the mean of f over the
            eigenvalues.
        width: standard deviation of the Gaussian that stands for each node in ``density``.
        hvps: Hessian-vector products taken.
        samples: number of samples that the loss is a mean over, on all processes.
    """

    grid: Tensor
    density: Tensor
    nodes: Tensor
    weights: Tensor
    width: float
    hvps: int
    samples: int


def hessian_trace(
    loss_fn: Callable[..., Tensor],
    params: Iterable[Tensor] | nn.Module,
    batches: Sequence[Any] | None = None,
    *,
    samples: int | Sequence[int] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    probes: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
) -> HessianTrace:
    r"""The trace of the Hessian, by Hutchinson's estimator: the mean of z'Hz over random signs z.

    Its variance is 2 / probes times the sum of the squared off-diagonal elements; for a diagonal Hessian it is exact.
    The interval is Student's t. Costs one product per probe; the host reads once, at the end.

    Args:
        loss_fn: mean loss of a batch, or of nothing, as for `Hessian`.
        params: the module, or parameters, as for `Hessian`.
        batches: a sequence of batches, as for `Hessian`.
        samples: number of samples of each, as for `Hessian`.
        reduce: sum over processes, as for `Hessian`.
        probes: number of sign vectors; >= 8, to know the interval.
        confidence: probability that the interval holds the trace; between 0 and 1.
        seed: of the probes; the same on all processes.

    Returns:
        The estimate, with its interval.

    Raises:
        ValueError: if an argument is out of range, or as `Hessian` does.
        TypeError: as `Hessian` does.

    References:
        Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines, 1990.
    """
    if probes < 8:
        raise ValueError(f"hessian_trace: `probes` must be >= 8, got {probes!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"hessian_trace: `confidence` must be between 0 and 1, got {confidence!r}.")
    hessian = Hessian(loss_fn, params, batches, samples=samples, reduce=reduce)
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(probes):
        signs = 2 * torch.randint(2, (hessian.size,), generator=generator, dtype=torch.float32) - 1
        signs = signs.to(hessian.device, hessian.dtype)
        estimates.append(dots([signs], hessian @ signs))
    found = hessian.mean_over_processes(torch.cat(estimates)).cpu()
    value, error = found.mean().item(), found.std().item() / math.sqrt(probes)
    margin = _student(confidence, probes - 1) * error
    return HessianTrace(value, value - margin, value + margin, error, hessian.hvps, hessian.samples)


def spectral_density(
    loss_fn: Callable[..., Tensor],
    params: Iterable[Tensor] | nn.Module,
    batches: Sequence[Any] | None = None,
    *,
    samples: int | Sequence[int] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    probes: int = 8,
    steps: int = 30,
    width: float | None = None,
    points: int = 1024,
    seed: int = 0,
) -> SpectralDensity:
    r"""The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    From each random start, ``steps`` products give Ritz values and the squares of their vectors' first coordinates:
    nodes and weights that integrate every polynomial of degree below 2 * steps as the start vector does. They are
    averaged over starts and smoothed by a Gaussian. Outliers are sharp; the bulk, where most eigenvalues of a network
    crowd around 0, is known to the resolution of its nodes. Costs probes * steps products and holds ``steps`` flat
    vectors.

    Args:
        loss_fn: mean loss of a batch, or of nothing, as for `Hessian`.
        params: the module, or parameters, as for `Hessian`.
        batches: a sequence of batches, as for `Hessian`.
        samples: number of samples of each, as for `Hessian`.
        reduce: sum over processes, as for `Hessian`.
        probes: number of random starts; >= 1.
        steps: nodes per start; >= 1. Fewer where the Krylov space ends sooner.
        width: standard deviation of the Gaussian, in units of curvature; > 0. Default: a hundredth of the range of the
            nodes.
        points: size of the grid, which reaches five widths beyond the nodes; >= 2. The density integrates to 1 on it
            as long as its spacing is below the width.
        seed: of the starts; the same on all processes.

    Returns:
        The density on a grid, and the quadrature behind it.

    Raises:
        ValueError: if an argument is out of range, or as `Hessian` does.
        FloatingPointError: if the loss or a product is not finite.
        TypeError: as `Hessian` does.

    References:
        Ubaru, Chen and Saad, Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, 2017; Ghorbani, Krishnan
        and Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, ICML 2019.
    """
    for name, value, least in (("probes", probes, 1), ("steps", steps, 1), ("points", points, 2)):
        if value < least:
            raise ValueError(f"spectral_density: `{name}` must be >= {least}, got {value!r}.")
    if width is not None and not width > 0:
        raise ValueError(f"spectral_density: `width` must be > 0, got {width!r}.")
    hessian = Hessian(loss_fn, params, batches, samples=samples, reduce=reduce)
    generator = torch.Generator().manual_seed(seed)
    found_nodes, found_weights = [], []
    for _ in range(probes):
        start = torch.randn(hessian.size, generator=generator).to(hessian.device, hessian.dtype)
        lanczos = Lanczos(hessian.__matmul__, start, hessian.mean_over_processes)
        while not lanczos.exhausted and len(lanczos.basis) < steps:
            lanczos.step()
        if not lanczos.finite:
            raise FloatingPointError("spectral_density: the loss or a Hessian-vector product is not finite.")
        values, _, coordinates = lanczos.ritz()
        found_nodes.append(values)
        found_weights.append(coordinates[0].square() / probes)
    nodes, order = torch.cat(found_nodes).sort()
    weights = torch.cat(found_weights)[order]
    low, high = nodes[[0, -1]].tolist()
    # A single eigenvalue has no range; it is drawn as a peak of a hundredth of its size.
    width = 0.01 * ((high - low) or abs(high) or 1.0) if width is None else width
    grid = torch.linspace(low - 5 * width, high + 5 * width, points, dtype=torch.float64)
    peaks = torch.exp(-0.5 * ((grid[:, None] - nodes) / width).square()) / (width * math.sqrt(2 * math.pi))
    return SpectralDensity(grid, peaks @ weights, nodes, weights, width, hessian.hvps, hessian.samples)


def _student(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, by Abramowitz and Stegun 26.7.5: at 99 %, 2e-4 off for 7 degrees or more."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )
