"""The Hessian of a mean loss, as an operator: products with vectors, in place of the matrix."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_same.curvature.differentiable import check_dense
from lightning_same.curvature.mean_loss import MeanLoss, Precision


class Graph(NamedTuple):
    """The gradient of one batch, with its history.

    Attributes:
        loss: the loss of the batch.
        leaves: the tensors that the loss is derived by, one for each parameter.
        grads: the gradient in their shapes.
    """

    loss: Tensor
    leaves: Sequence[Tensor]
    grads: Sequence[Tensor]


class Hessian(MeanLoss):
    r"""H, the second derivative of a mean loss with respect to parameters, as a linear operator.

    ``hessian @ v`` is H v without H: the derivative of \(g \cdot v\), where g is the gradient; exact to rounding. With
    batches i of n_i samples, on one process or many, the loss is the mean over all samples:
    H = sum_i n_i H_i / sum_i n_i.

    One operator serves any number of measures: `top_eigenvalue`, `hessian_trace`, `spectral_density` and
    `gradient_curvature` take it, or take its arguments in its place and build it.

    For one batch the graph of g is built once and serves all products: about 1.3 forward-backward passes, then 2.6 per
    product. For several batches the graph of each is built anew for every product, about 3.4 passes over the batches,
    so that memory does not grow with their number. Weights, ``.grad`` and the global random state are never changed.
    Random numbers that ``loss_fn`` draws are the same in every product.

    Autocast and TF32 are off, attention takes the math backend (fused kernels have no second derivative), compiled
    modules run eagerly, and recurrent ones without cuDNN. ``loss_fn`` must call the module itself, not its
    DistributedDataParallel wrapper: ``reduce`` does the wrapper's work. An operation without a second derivative raises
    an error, and so does activation checkpointing with ``use_reentrant=True``. Any other `torch.autograd.Function`
    gives a warning with its name, because it may hide a part of the second derivative: what its backward computes
    outside autograd, or what its forward computes for the backward, counts as constant.

    Args:
        loss_fn: returns the mean loss, a scalar: of ``loss_fn(batch)``, or of ``loss_fn()`` if ``batches`` is None.
        params: a module: the loss is taken in eval mode (BatchNorm uses its running statistics, no dropout), and every
            submodule gets its own mode back. Or an iterable of parameters: the loss is taken in the mode that the
            module is in; in train mode a forward updates BatchNorm's statistics as usual. A tied parameter counts once,
            a frozen one not at all, an unused one has rows and columns of zeros. Parameters must not change while the
            operator is in use.
        batches: the batches, on the device. A sequence, not a loader: every product goes through all of them.
        samples: number of samples of each batch, or of the only one (of tokens, if the loss is a mean over tokens).
            Default: the leading dimension of the batch's tensors; 1 without ``batches``.
        reduce: returns the sum over processes of a flat tensor, as an all-reduce does. Called once by the constructor
            with two numbers, then once per product with the whole product, however many batches there are: processes
            may hold different numbers of batches, or none. In float64 it is called with one number more per product.
        dtype: "float64" measures with float64 copies of the parameters, buffers and batches; the model stays as it is,
            and ``loss_fn`` needs no change. It takes twice the time on most CPUs, and up to 64 times on consumer GPUs.
            "auto" measures in the model's dtype, and once more in float64 if rounding exceeds the tolerance. Default:
            the dtype of the model. Cross-entropy late in training needs float64: at a mean loss of 1e-6 the probability
            of the right class is 1 - 1e-6, and float32 stores this 1e-6 with an error of 6%.

    Attributes:
        size: number of elements of the parameters.
        device: where vectors live.
        dtype: of the vectors: that of the parameters, at least float32; or float64.
        samples: number of samples over all batches and processes.
        hvps: number of products so far.
        params: the parameters by which the loss is derived, in the order of the rows.

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
        dtype: Precision = None,
    ) -> None:
        super().__init__(loss_fn, params, batches, samples=samples, reduce=reduce, dtype=dtype)
        params = params if isinstance(params, nn.Module) else self.params
        self._arguments: dict[str, Any] = {"loss_fn": loss_fn, "params": params, "batches": batches}
        self._arguments |= {"samples": samples, "reduce": reduce}
        self._is_auto = dtype == "auto" and self.device.type != "mps"
        self._graph: Graph | None = None
        self.hvps = 0

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

    @cached_property
    def finer(self) -> "Hessian | None":
        """What to measure where rounding decides: with ``dtype="auto"`` the same Hessian in float64, else None."""
        return self.in_float64() if self._is_auto and self.dtype != torch.float64 else None

    def in_float64(self) -> "Hessian":
        """The same Hessian with ``dtype="float64"``; each call builds a graph of its own."""
        hessian = Hessian(**self._arguments, dtype="float64")
        hessian._same_numbers = self._same_numbers
        return hessian

    @override
    @contextmanager
    def perturbed(self, offset: Tensor) -> Iterator[None]:
        self._graph = None
        try:
            with super().perturbed(offset):
                yield
        finally:
            self._graph = None

    def gradient(self) -> Tensor:
        """The flat gradient of the mean loss, over all batches and processes."""
        return self._mean(lambda graph: graph.grads)

    @override
    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The mean loss and its flat gradient; of the graph, where there is one for all products, at no pass."""
        if self._graph is None:
            return super().loss_and_gradient()
        with self._of_all_processes():  # of which others may have several batches, and no graph
            total = self._flat([self._graph.loss, *self._graph.grads]).mul_(self._weights[0])
        return self._summed(total)

    def _mean(self, derivative: Callable[[Graph], Sequence[Tensor]]) -> Tensor:
        """Mean over samples of ``derivative(graph of a batch)``; one sum over processes, at the end."""
        with self._of_all_processes(), self._differentiable():
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            for loss_fn, weight in zip(self._losses, self._weights, strict=True):
                total.add_(self._flat(derivative(self._graph_of(loss_fn))), alpha=weight)
        return total if self._sum is None else self._sum(total)

    def _graph_of(self, loss_fn: Callable[[], Tensor]) -> Graph:
        if self._graph is not None:
            return self._graph
        loss, leaves = self._forward(loss_fn)
        grads = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        check_dense(grads)
        graph = Graph(loss.detach(), leaves, grads)
        if len(self._losses) == 1:
            self._graph = graph
        return graph

    def _product(self, vectors: Sequence[Tensor], graph: Graph) -> Sequence[Tensor]:
        # A gradient without a history is constant, such as that of a linear or an unused parameter.
        curved = [(grad, vector) for grad, vector in zip(graph.grads, vectors, strict=True) if grad.requires_grad]
        if not curved:
            return [torch.zeros_like(leaf) for leaf in graph.leaves]
        outputs, along = zip(*curved, strict=True)
        products: Sequence[Tensor] = torch.autograd.grad(
            outputs,
            graph.leaves,
            along,
            retain_graph=self._graph is not None,
            allow_unused=True,
            materialize_grads=True,
        )
        return products
