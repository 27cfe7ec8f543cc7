"""The Hessian's whole spectrum from random probes: its trace and its density. Plain torch.

A measure takes a `Hessian`, or in its place the loss, the parameters and, optionally, batches. Probes come from a
generator of their own, seeded by ``seed`` and on the CPU, so that the global random state is untouched.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.curvature.lanczos import Lanczos
from lightning_same.curvature.measure import takes_loss
from lightning_same.curvature.protocol import Operator
from lightning_same.curvature.vectors import dots, mean_with_interval


class HessianTrace(NamedTuple):
    """Estimate of the sum of all eigenvalues.

    Attributes:
        value: the unbiased estimate.
        low: lower end of the confidence interval.
        high: upper end of the confidence interval.
        standard_error: standard deviation of ``value``, estimated from the probes.
        hvps: number of Hessian-vector products.
        samples: number of samples that the loss is a mean over, on all processes.
    """

    value: float
    low: float
    high: float
    standard_error: float
    hvps: int
    samples: int


class SpectralDensity(NamedTuple):
    """The distribution of the eigenvalues. Tensors are float64 on the CPU.

    Attributes:
        grid: shape (points,): eigenvalues, ascending.
        density: shape (points,): share of the eigenvalues per unit of ``grid``, averaged over the cell around a point;
            integrates to 1.
        nodes: shape (nodes,): the quadrature's eigenvalues, ascending.
        weights: shape (nodes,): the share of the eigenvalues at each node; they sum to 1.
            ``(weights * f(nodes)).sum()`` estimates the mean of f over the eigenvalues.
        width: standard deviation of the Gaussian that stands for each node in ``density``.
        hvps: number of Hessian-vector products.
        samples: number of samples that the loss is a mean over, on all processes.
    """

    grid: Tensor
    density: Tensor
    nodes: Tensor
    weights: Tensor
    width: float
    hvps: int
    samples: int


@takes_loss
def hessian_trace(
    hessian: Operator,
    *,
    probes: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
) -> HessianTrace:
    r"""The trace of the Hessian, by Hutchinson's estimator: the mean of z'Hz over random signs z.

    The variance of the estimate is 2 / probes times the sum of the squared off-diagonal elements; for a diagonal
    Hessian it is exact. The interval is Student's t. Costs one product per probe, and one host sync at the end.

    Args:
        hessian: a `Hessian` or another `Operator`; or in its place the arguments of `Hessian`, as in
            ``hessian_trace(loss_fn, params, batches, samples=..., reduce=..., dtype=...)``.
        probes: number of sign vectors; >= 8, or the interval could not be trusted.
        confidence: probability that the interval holds the trace; between 0 and 1.
        seed: of the probes; the same on all processes.

    Returns:
        The estimate, with its interval.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if ``hessian`` is neither an operator nor a loss with its parameters.

    Examples:
        The Hessian of a sum of squares is diagonal, where the estimate is exact:

        >>> import torch
        >>> w = torch.zeros(3, requires_grad=True)
        >>> trace = hessian_trace(lambda: w[0] ** 2 + 2 * w[1] ** 2 + 4 * w[2] ** 2, [w])
        >>> trace.value, trace.standard_error, trace.hvps
        (14.0, 0.0, 32)

    References:
        Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines, 1990.
    """
    if probes < 8:
        raise ValueError(f"hessian_trace: `probes` must be >= 8, got {probes!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"hessian_trace: `confidence` must be between 0 and 1, got {confidence!r}.")
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(probes):
        signs = 2 * torch.randint(2, (hessian.size,), generator=generator, dtype=torch.float32) - 1
        signs = signs.to(hessian.device, hessian.dtype)
        estimates.append(dots([signs], hessian @ signs))
    quadratic_forms = hessian.mean_over_processes(torch.cat(estimates)).cpu()
    return HessianTrace(*mean_with_interval(quadratic_forms, confidence), probes, hessian.samples)


@takes_loss
def spectral_density(
    hessian: Operator,
    *,
    probes: int = 8,
    steps: int = 30,
    width: float | None = None,
    points: int = 1024,
    seed: int = 0,
) -> SpectralDensity:
    r"""The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    From each random start v, ``steps`` products give Ritz values and the squares of their vectors' first coordinates:
    nodes and weights whose sum over any polynomial f of degree below 2 * steps is v'f(H)v. They are averaged over
    starts and smoothed by a Gaussian. Outliers are sharp; the bulk, where most eigenvalues of a network crowd around 0,
    is known to the resolution of its nodes. Costs probes * steps products and holds ``steps`` flat vectors.

    Args:
        hessian: a `Hessian` or another `Operator`; or in its place the arguments of `Hessian`, as in
            ``spectral_density(loss_fn, params, batches, samples=..., reduce=..., dtype=...)``.
        probes: number of random starts; >= 1.
        steps: nodes per start; >= 1. Fewer if the Krylov space becomes invariant before.
        width: standard deviation of the Gaussian, in units of curvature; > 0. Default: a hundredth of the range of the
            nodes.
        points: size of the grid, which reaches five widths beyond the nodes, and at least one cell; >= 2. The density
            at a point is the mean over the cell around it, so that it integrates to 1 even where the width is below
            the spacing.
        seed: of the random starts; the same on all processes.

    Returns:
        The density on a grid, and the quadrature behind it.

    Raises:
        ValueError: if an argument is out of range.
        FloatingPointError: if the loss or a product is not finite.
        TypeError: if ``hessian`` is neither an operator nor a loss with its parameters.

    Examples:
        Two eigenvalues of 0 and two of 2; a random start has half of its square in either, to its own accuracy:

        >>> import torch
        >>> w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        >>> density = spectral_density(lambda: w[0] ** 2 + w[1] ** 2, [w], probes=2)
        >>> (density.nodes + 0.0).round(decimals=9)
        tensor([0., 0., 2., 2.], dtype=torch.float64)
        >>> round(density.weights.sum().item(), 9), density.hvps
        (1.0, 4)

    References:
        Ubaru, Chen and Saad, Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, 2017; Ghorbani, Krishnan
        and Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, ICML 2019.
    """
    for name, count, minimum in (("probes", probes, 1), ("steps", steps, 1), ("points", points, 2)):
        if count < minimum:
            raise ValueError(f"spectral_density: `{name}` must be >= {minimum}, got {count!r}.")
    if width is not None and not width > 0:
        raise ValueError(f"spectral_density: `width` must be > 0, got {width!r}.")
    generator = torch.Generator().manual_seed(seed)
    ritz_values, ritz_weights, hvps = [], [], 0
    for _ in range(probes):
        start = torch.randn(hessian.size, generator=generator).to(hessian.device, hessian.dtype)
        lanczos = Lanczos(hessian.__matmul__, start, hessian.mean_over_processes)
        while not lanczos.exhausted and len(lanczos.basis) < steps:
            lanczos.step()
        if not lanczos.finite:
            raise FloatingPointError("spectral_density: the loss or a Hessian-vector product is not finite.")
        values, _, coordinates = lanczos.ritz()
        ritz_values.append(values)
        ritz_weights.append(coordinates[0].square() / probes)
        hvps += len(lanczos.basis)
    nodes, order = torch.cat(ritz_values).sort()
    weights = torch.cat(ritz_weights)[order]
    low, high = nodes[[0, -1]].tolist()
    # A single eigenvalue has no range; it is drawn as a peak of a hundredth of its size.
    width = 0.01 * ((high - low) or abs(high) or 1.0) if width is None else width
    # Room for the outermost peaks, or for a cell where those are narrower.
    reach = max(5 * width, (high - low) / max(points - 3, 1))
    grid = torch.linspace(low - reach, high + reach, points, dtype=torch.float64)
    spacing = (high - low + 2 * reach) / (points - 1)
    edges = torch.cat([grid - spacing / 2, grid[-1:] + spacing / 2])
    below = torch.special.ndtr((edges[:, None] - nodes) / width) @ weights
    return SpectralDensity(grid, below.diff().clamp(min=0) / spacing, nodes, weights, width, hvps, hessian.samples)
