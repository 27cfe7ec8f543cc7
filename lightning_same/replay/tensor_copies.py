"""Copies of many tensors, made and written back by a number of operations that does not grow with theirs."""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


class TensorCopies:
    """The values of tensors at one moment.

    Tensors of one dtype and device are copied into one block, by one operation; others, such as sparse ones, one by
    one.

    Args:
        tensors: any, each once.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device] | int, list[Tensor]] = {}
        for tensor in tensors:
            dense = type(tensor) is Tensor or type(tensor) is torch.nn.Parameter
            dense = dense and tensor.layout == torch.strided and tensor.is_contiguous()
            groups.setdefault((tensor.dtype, tensor.device) if dense else id(tensor), []).append(tensor)
        with torch.no_grad() if groups else nullcontext():
            self._groups = [(group, _copies(group)) for group in groups.values()]

    @torch.no_grad()
    def differ(self) -> bool:
        """Whether a tensor has another value now. The host waits for the device."""
        return any(
            not torch.equal(tensor, copy)
            for tensors, copies in self._groups
            for tensor, copy in zip(tensors, copies, strict=True)
        )

    def restore(self) -> None:
        """Write the values back.

        Through ``.data``, which leaves version counters alone: a graph that the user keeps across the two passes stays
        usable, for once all is restored its saved tensors have the values they had.
        """
        for tensors, copies in self._groups:  # Often there is none.
            pairs = [
                (tensor.data, copy)
                for tensor, copy in zip(tensors, copies, strict=True)
                if _must_be_written(tensor, copy)
            ]
            if pairs:
                with torch.no_grad():
                    torch._foreach_copy_([tensor for tensor, _ in pairs], [copy for _, copy in pairs])

    def release(self, tensors: Iterable[Tensor]) -> None:
        """Write the values of some of them back for the last time, and hold those no longer."""
        released = {id(tensor) for tensor in tensors}
        kept = []
        for group, copies in self._groups:
            apart: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])
            for tensor, copy in zip(group, copies, strict=True):
                apart[id(tensor) in released].append((tensor, copy))
            for tensor, copy in apart[True]:
                tensor.data.copy_(copy)
            if apart[False]:
                kept.append(([tensor for tensor, _ in apart[False]], [copy for _, copy in apart[False]]))
        self._groups = kept


def _copies(group: list[Tensor]) -> list[Tensor]:
    if len(group) == 1:
        return [group[0].detach().clone()]
    plain = [tensor.detach() for tensor in group]
    block = _flatten_dense_tensors(plain)  # type: ignore[no-untyped-call]
    return list(_unflatten_dense_tensors(block, plain))  # type: ignore[no-untyped-call]


def _must_be_written(tensor: Tensor, copy: Tensor) -> bool:
    """Whether to write the value back: on the CPU, where comparing is cheap, only if it differs.

    What nobody wrote to may not be writable; a memory-mapped file is not.
    """
    return tensor.device.type != "cpu" or tensor.layout != torch.strided or not torch.equal(tensor, copy)
