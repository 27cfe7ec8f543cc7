"""The Hessian of a mean loss, known by its products with vectors."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_same.curvature.lanczos import scalar_dtype
from lightning_same.replay.random_state import random_state

NO_SECOND_DERIVATIVE = (
    "Hessian: an operation in the loss has no second derivative ({}). Replace it while curvature is measured, such as a"
    " fused kernel by its plain form."
)

_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__
"""Of the wrapper, which is the same around every function."""


class Hessian:
    r"""H, the second derivative of a mean loss with respect to parameters, as a linear operator.

    ``hessian @ v`` is H v, exact and without H: the derivative of \(g \cdot v\), where g is the gradient. With batches
    i of n_i samples, on one process or many, the loss is the mean over all samples: H = sum_i n_i H_i / sum_i n_i.

    For one batch the graph of g is built once and serves all products (about 1.3 forward-backward passes, then 2.6 per
    product); for several batches it is rebuilt for each at every product (about 3.4 passes over the batches), so that
    memory does not grow with their number. Weights, ``.grad`` and the global random state are never changed. Random
    numbers that ``loss_fn`` draws are the same in every product.

    Inside, autocast is off, attention takes the math backend (fused kernels have no second derivative), compiled
    modules run eagerly and recurrent ones without cuDNN. ``loss_fn`` must call the module itself, not its
    DistributedDataParallel wrapper: ``reduce`` does that work. An operation without a second derivative is refused, and
    so is activation checkpointing by ``use_reentrant=True``. Any other `torch.autograd.Function` is warned of by its
    name: what its backward computes outside autograd, or its forward has computed for it, counts as constant, and
    nothing gives that away.

    Args:
        loss_fn: returns the mean loss, a scalar: of ``loss_fn(batch)``, or of ``loss_fn()`` if ``batches`` is None.
        params: a module, to be measured in eval mode (BatchNorm by its running statistics, no dropout), after which
            each of its submodules is back in its own mode. Or any iterable of parameters, to be measured in whatever
            mode their module is in; in train mode a forward then updates BatchNorm's statistics as it always does.
            A tied parameter counts once, a frozen one not at all, an unused one has rows and columns of zeros. They
            must not change while the operator is in use.
        batches: the batches, on the device. A sequence, not a loader: it is gone through at every product.
        samples: number of samples (or tokens: what the mean is over) of each batch, or of the only one. Default: the
            leading dimension of the batch's tensors; 1 without ``batches``.
        reduce: returns the sum over processes of a flat tensor, as an all-reduce does. It is called once here with two
            numbers, then once per product with all of it, whatever the number of batches: the processes may hold
            different numbers of them, or none.

    Attributes:
        size: number of elements of the parameters.
        device: where vectors live.
        dtype: of the vectors: that of the parameters, at least float32.
        samples: their number over all batches and processes.
        hvps: number of products so far.

    Raises:
        RuntimeError: at the first product, if an operation has no second derivative, or at reentrant checkpointing.
        ValueError: if nothing is trainable, a parameter is complex, or numbers of samples are missing, ambiguous or
            add up to zero.
        TypeError: if ``batches`` is not a sequence.

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
        given = params.parameters() if isinstance(params, nn.Module) else params
        self.params = list({id(param): param for param in given if param.requires_grad}.values())
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
        counts = _counts(batches, samples, alone=reduce is None)
        total, self._processes = float(sum(counts)), 1.0
        if reduce is not None:
            told = torch.tensor([total, 1.0], dtype=scalar_dtype(self.device), device=self.device)
            total, self._processes = reduce(told).tolist()
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
        """Weigh by samples what ``derivative`` makes of each batch's gradients; one sum over processes, at the end."""
        with self._differentiable(), _explained():
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
            self._functions = _functions(loss)
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
        """Everything twice differentiable, in full precision, with the same random numbers each time."""
        before = random_state(self.device)
        try:
            for put_back in self._same_numbers:
                put_back()
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(self.device.type, enabled=False),
                sdpa_kernel(SDPBackend.MATH),
                torch.compiler.set_stance("force_eager"),
                _evaluated(self._module),
            ):
                yield
        finally:
            for put_back in before:
                put_back()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "derivative for" in str(error) or "double backward" in str(error):
            raise RuntimeError(NO_SECOND_DERIVATIVE.format(str(error).rstrip("."))) from error
        raise


def _functions(loss: Tensor) -> list[str]:
    """Names of the Functions behind a loss. Refuses those whose missing derivative autograd would take for zero."""
    waiting, seen, names = [loss.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
        function = getattr(node, "_forward_cls", None)
        if function is None:
            continue
        name = function.__qualname__.removeprefix("GeneratedBackwardFor_")  # of an operator by `torch.library`
        if name == "CheckpointFunction":
            raise RuntimeError(
                "Hessian: the loss goes through activation checkpointing with use_reentrant=True, behind which"
                " torch.autograd.grad finds no parameters. Use torch.utils.checkpoint.checkpoint(...,"
                " use_reentrant=False)."
            )
        if _is_once_differentiable(function.backward):
            raise RuntimeError(NO_SECOND_DERIVATIVE.format(f"the backward of {name} is marked `once_differentiable`"))
        names.add(name)
    return sorted(names)


def _is_once_differentiable(backward: Any) -> bool:
    """Whether the decorator is on a backward, maybe beneath others."""
    while backward is not None:
        if getattr(backward, "__code__", None) is _ONCE_DIFFERENTIABLE:
            return True
        backward = getattr(backward, "__wrapped__", None)
    return False


@contextmanager
def _evaluated(module: nn.Module | None) -> Iterator[None]:
    """A module in eval mode. By the flags alone: a module may do more in its `eval`, and not undo it in `train`."""
    modules = [] if module is None else list(module.modules())
    modes = [each.training for each in modules]
    with ExitStack() as stack:
        if any(isinstance(each, nn.RNNBase) for each in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # it has no second derivative of them
        try:
            for each in modules:
                each.training = False
            yield
        finally:
            for each, mode in zip(modules, modes, strict=True):
                each.training = mode


def _counts(batches: Sequence[Any] | None, samples: int | Sequence[int] | None, alone: bool) -> list[int]:
    """The number of samples of each batch."""
    number = 1 if batches is None else len(batches)
    if samples is None:
        if batches is not None:
            return [_leading(batch) for batch in batches]
        if alone:
            return [1]
        raise ValueError("Hessian: with `reduce`, say by `samples` how many the loss of this process is a mean over.")
    counts = [samples] if isinstance(samples, int) else list(samples)
    if len(counts) != number or min(counts, default=0) < 0:
        raise ValueError(f"Hessian: `samples` must hold {number} numbers >= 0, one for each batch, got {samples!r}.")
    return counts


def _leading(batch: Any) -> int:
    """The leading dimension on which all tensors of a batch agree."""
    lengths = {tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim}
    if len(lengths) != 1:
        raise ValueError(
            "Hessian: the number of samples in a batch is unclear, its tensors have leading dimensions"
            f" {sorted(lengths)}. Give `samples`, one number for each batch."
        )
    return int(lengths.pop())


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from _tensors(value)
