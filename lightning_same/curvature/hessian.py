"""The Hessian of a mean loss, as an operator: products with vectors, in place of the matrix."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_same.curvature.differentiable import custom_functions, evaluated, twice_differentiable
from lightning_same.curvature.samples import sample_counts
from lightning_same.curvature.vectors import scalar_dtype
from lightning_same.replay.random_state import random_state


class Hessian:
    r"""H, the second derivative of a mean loss with respect to parameters, as a linear operator.

    ``hessian @ v`` is H v without H: the derivative of \(g \cdot v\), where g is the gradient; exact to rounding. With
    batches i of n_i samples, on one process or many, the loss is the mean over all samples:
    H = sum_i n_i H_i / sum_i n_i.

    One operator serves any number of measures: `top_eigenvalue`, `hessian_trace`, `spectral_density` and
    `gradient_curvature` take it, or take its arguments in its place and build it.

    For one batch the graph of g is built once and serves all products (about 1.3 forward-backward passes, then 2.6 per
    product); for several batches it is rebuilt for each at every product (about 3.4 passes over the batches), so that
    memory does not grow with their number. Weights, ``.grad`` and the global random state are never changed. Random
    numbers that ``loss_fn`` draws are the same in every product.

    Autocast is off, attention takes the math backend (fused kernels have no second derivative), compiled modules run
    eagerly and recurrent ones without cuDNN. ``loss_fn`` must call the module itself, not its DistributedDataParallel
    wrapper: ``reduce`` does that work. An operation without a second derivative raises an error, and so does activation
    checkpointing with ``use_reentrant=True``. Any other `torch.autograd.Function` gives a warning with its name: what
    its backward computes outside autograd, or what its forward computes for the backward, silently counts as constant.

    Args:
        loss_fn: returns the mean loss, a scalar: of ``loss_fn(batch)``, or of ``loss_fn()`` if ``batches`` is None.
        params: a module: the loss is taken in eval mode (BatchNorm uses its running statistics, no dropout), and every
            submodule gets its own mode back. Or an iterable of parameters: the loss is taken in the mode that the
            module is in; in train mode a forward updates BatchNorm's statistics as usual. A tied parameter counts once,
            a frozen one not at all, an unused one has rows and columns of zeros. Parameters must not change while the
            operator is in use.
        batches: the batches, on the device. A sequence, not a loader: every product goes through all of them.
        samples: number of samples (or tokens: what the mean is over) of each batch, or of the only one. Default: the
            leading dimension of the batch's tensors; 1 without ``batches``.
        reduce: returns the sum over processes of a flat tensor, as an all-reduce does. Called once by the constructor
            with two numbers, then once per product with the whole product, however many batches there are: processes
            may hold different numbers of batches, or none.

    Attributes:
        size: number of elements of the parameters.
        device: where vectors live.
        dtype: of the vectors: that of the parameters, at least float32.
        samples: number of samples over all batches and processes.
        hvps: number of products so far.
        params: the parameters that H is the second derivative for, in the order of the rows.

    Raises:
        RuntimeError: at the first product, if an operation has no second derivative, or at reentrant checkpointing.
        ValueError: if nothing is trainable, a parameter is complex, or numbers of samples are missing, ambiguous or
            add up to zero.
        TypeError: if ``batches`` is not a sequence.

    Examples:
        The loss w_1^2 + 3 w_2^2 + w_1 w_2 has a constant Hessian:

        >>> import torch
        >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> hessian = Hessian(lambda: w[0] ** 2 + 3 * w[1] ** 2 + w[0] * w[1], [w])
        >>> hessian @ torch.tensor([1.0, 0.0])
        tensor([2., 1.])
        >>> hessian.gradient()
        tensor([3., 7.])

        Two batches of one and three samples weigh 1 : 3:

        >>> batches = [torch.full((1,), 8.0), torch.full((3,), 4.0)]
        >>> hessian = Hessian(lambda x: 0.5 * (x * w[0] ** 2).mean(), [w], batches)
        >>> hessian @ torch.tensor([1.0, 1.0])
        tensor([5., 0.])

    References:
        Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 1994.
    """

    def __init__(
        self,
        loss_fn: Callable[..., Tensor],
        params: Iterable[Tensor] | nn.Module,
        batches: Sequence[Any] | None = None,
        *,
        samples: int | Sequence[int] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._module = params if isinstance(params, nn.Module) else None
        every = params.parameters() if isinstance(params, nn.Module) else params
        self.params = list({id(param): param for param in every if param.requires_grad}.values())
        if not self.params:
            raise ValueError("Hessian: `params` holds no tensor that requires a gradient.")
        if any(param.is_complex() for param in self.params):
            raise ValueError("Hessian: complex parameters are not supported; keep them as real, by torch.view_as_real.")
        self.size = sum(param.numel() for param in self.params)
        self.device = self.params[0].device
        self.dtype = torch.float32
        for param in self.params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)
        self.hvps = 0
        if batches is not None and not isinstance(batches, Sequence):
            raise TypeError(
                f"Hessian: `batches` must be a sequence, got {type(batches).__name__}. Every product goes through the"
                " same batches; take them once, such as `list(itertools.islice(loader, 8))`."
            )
        self._losses: list[Callable[[], Tensor]] = (
            [loss_fn] if batches is None else [partial(loss_fn, batch) for batch in batches]
        )
        self._sum = reduce
        counts = sample_counts(batches, samples, one_process=reduce is None)
        total, self._processes = float(sum(counts)), 1.0
        if reduce is not None:
            summands = torch.tensor([total, 1.0], dtype=scalar_dtype(self.device), device=self.device)
            total, self._processes = reduce(summands).tolist()
        if total <= 0:
            raise ValueError("Hessian: there is not one sample to measure on.")
        self.samples = round(total)
        self._weights = [count / total for count in counts]
        self._graph: list[Tensor] | None = None
        self._functions: list[str] | None = None
        self._same_numbers = random_state(self.device)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """H v for a flat vector v: all parameters end to end, in their order."""
        if vector.shape != (self.size,):
            raise ValueError(f"Hessian: the vector must have shape ({self.size},), got {tuple(vector.shape)}.")
        self.hvps += 1
        product = self._mean(partial(self._product, self.split(vector.detach())))
        if self.hvps == 1 and self._functions:
            warnings.warn(
                f"Hessian: the loss goes through {', '.join(self._functions)}, a torch.autograd.Function. Curvature is"
                " right only if its backward consists of differentiable operations on the gradient and on saved inputs"
                " or outputs; torch.autograd.gradgradcheck tells.",
                stacklevel=2,
            )
        return product

    def gradient(self) -> Tensor:
        """The flat gradient of the mean loss, over all batches and processes."""
        return self._mean(lambda grads: grads)

    def loss(self) -> float:
        """The mean loss at the present weights, over all batches and processes, by a forward of its own."""
        with self._differentiable(), torch.no_grad():
            total = torch.zeros(1, dtype=scalar_dtype(self.device), device=self.device)
            for loss_fn, weight in zip(self._losses, self._weights, strict=True):
                total += weight * loss_fn().detach()
        return (total if self._sum is None else self._sum(total)).item()

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into tensors of the parameters' shapes, dtypes and devices."""
        cuts = torch.split(vector, [param.numel() for param in self.params])
        return [cut.view(param.shape).to(param) for cut, param in zip(cuts, self.params, strict=True)]

    def mean_over_processes(self, scalars: Tensor) -> Tensor:
        """The mean of scalars over processes, which is the same on all of them."""
        return scalars if self._sum is None else self._sum(scalars) / self._processes

    def _mean(self, derivative: Callable[[list[Tensor]], Sequence[Tensor]]) -> Tensor:
        """Mean over samples of ``derivative(gradients of a batch)``; one sum over processes, at the end."""
        with self._differentiable():
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            for loss_fn, weight in zip(self._losses, self._weights, strict=True):
                parts = derivative(self._gradients(loss_fn))
                flat = torch.cat([part.detach().to(total).reshape(-1) for part in parts])
                total.add_(flat, alpha=weight)
        return total if self._sum is None else self._sum(total)

    def _gradients(self, loss_fn: Callable[[], Tensor]) -> list[Tensor]:
        if self._graph is not None:
            return self._graph
        loss = loss_fn()
        if self._functions is None:
            self._functions = custom_functions(loss)
        grads = list(
            torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True, materialize_grads=True)
        )
        if len(self._losses) == 1:
            self._graph = grads
        return grads

    def _product(self, vectors: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        # A gradient without a history is constant, such as that of a linear or an unused parameter.
        curved = [(grad, vector) for grad, vector in zip(grads, vectors, strict=True) if grad.requires_grad]
        if not curved:
            return [torch.zeros_like(param) for param in self.params]
        outputs, along = zip(*curved, strict=True)
        products: Sequence[Tensor] = torch.autograd.grad(
            outputs,
            self.params,
            along,
            retain_graph=self._graph is not None,
            allow_unused=True,
            materialize_grads=True,
        )
        return products

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """A forward that has a second derivative and draws the same random numbers each time."""
        before = random_state(self.device)
        try:
            for put_back in self._same_numbers:
                put_back()
            with twice_differentiable(self.device), evaluated(self._module):
                yield
        finally:
            for put_back in before:
                put_back()
