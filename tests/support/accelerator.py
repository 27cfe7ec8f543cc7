"""A CPU that refuses what is slow or wrong on an accelerator."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LikeAnAccelerator(TorchDispatchMode):
    """Raises where an accelerator would wait, or take one kernel for each tensor of a list.

    Args:
        may_wait: whether the host may read a value.
    """

    def __init__(self, may_wait: bool = False) -> None:
        super().__init__()
        self.may_wait = may_wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and not self.may_wait:
            raise AssertionError("the host reads a value, for which it waits for the device")
        if name.startswith("_foreach"):
            dtypes = {tensor.dtype for tensor in tensors_in((args, kwargs or {}))}
            if len(dtypes) > 1:
                raise AssertionError(f"{name} of tensors of {dtypes} takes one kernel for each")
        return func(*args, **(kwargs or {}))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
