"""A forward in float64 of a model that is in float32, without touching the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from lightning_same.gradients.graph import nodes

CASTS: dict[Callable[..., Any], Callable[..., Any]] = dict.fromkeys(
    (Tensor.float, Tensor.half, Tensor.bfloat16), Tensor.double
)
"""Methods that ask for a dtype by their name, and what is called in their place."""

VIEWS = frozenset({"T", "mT", "H", "mH", "real", "imag", "dtype"})
"""Attributes of a tensor that are to be those of its copy; the others, such as ``data`` and ``grad``, are its own."""

IDENTITY = frozenset({"data_ptr", "untyped_storage", "storage", "storage_offset", "stride", "is_contiguous"})
"""Methods that tell where a tensor is in memory."""


OTHERWISE = "Leave `dtype` out, or convert the model and the batches by `.double()`."


class Float64Error(RuntimeError):
    """A loss cannot be had in float64, though in the model's own dtype it can."""


class Float64(TorchFunctionMode):
    """While it is active, operations get float64 copies of the floating-point tensors in their arguments.

    Tensors outside stay as they are, buffers too: what a forward writes to in place is not replaced, and is computed in
    its own dtype.

    Args:
        copies: copies to be used for certain tensors, by the tensor's ``id``.
    """

    def __init__(self, copies: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._copies = copies

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in IDENTITY or name == "__set__" or (name == "__get__" and func.__self__.__name__ not in VIEWS):  # type: ignore[attr-defined]
            return func(*args, **kwargs)
        func = CASTS.get(func, func)
        # The name of `a.add_(b)` ends with one underscore; that of `a += b`, which returns a new `a`, with two.
        in_place = name.endswith("_") and not name.endswith("__")
        target, args = (args[:1], args[1:]) if in_place else ((), args)
        out = {"out": kwargs.pop("out")} if kwargs.get("out") is not None else {}
        written = [leaf for leaf in tree_leaves((target, out)) if isinstance(leaf, Tensor)]
        # Many operations write to a tensor of their arguments' dtype only.
        dtype = written[0].dtype if written and written[0].is_floating_point() else torch.float64
        args, kwargs = tree_map(partial(self._cast, dtype), (args, kwargs))
        return func(*target, *args, **kwargs, **out)

    def _cast(self, dtype: torch.dtype, value: Any) -> Any:
        if isinstance(value, Tensor):
            value = self._copies.get(id(value), value)
            return value.to(dtype) if value.dtype.is_floating_point else value
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return dtype
        return value


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The dtype that tensors are created with."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_float64(loss_fn: Callable[[], Tensor], params: Iterable[Tensor], leaves: Iterable[Tensor]) -> Tensor:
    """A loss as it would be were the model, its buffers and its batch in float64.

    Args:
        loss_fn: the loss, of a model in any dtype.
        params: parameters of the model.
        leaves: for each of them the float64 tensor that takes its place, and by which the loss is derived.

    Raises:
        Float64Error: if it cannot be had, with the reason.
    """
    replaced = dict(zip(map(id, params), leaves, strict=True))
    try:
        with default_dtype(torch.float64), Float64(replaced):
            loss = loss_fn().double()
    except (RuntimeError, TypeError) as error:
        raise Float64Error(f"Hessian: the loss cannot be had in float64. {OTHERWISE}") from error
    if any(id(getattr(node, "variable", None)) in replaced for node in nodes(loss)):
        raise Float64Error(
            "Hessian: in float64 a parameter is replaced by a copy, and this loss gives the parameter itself to a"
            f" torch.autograd.Function or to a compiled extension. {OTHERWISE}"
        )
    return loss
