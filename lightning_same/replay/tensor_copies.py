"""Copies of many tensors, made and written back by a number of operations that does not grow with theirs."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_same.gradients.pieces import flattened
from lightning_same.gradients.sharding import PLAIN, local, locals_of


class TensorCopies:
    """The values of tensors at one moment.

    Tensors of one dtype and device are copied into one block, by one operation; those that are sparse or have gaps, one
    by one. Of sharded tensors, the elements on this process.

    Args:
        tensors: any, each once.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []
        tensors = list(tensors)
        if not tensors:
            return
        groups: dict[tuple[torch.dtype, torch.device] | int, list[Tensor]] = {}
        with torch.no_grad():
            for tensor, shard in zip(tensors, locals_of(tensors), strict=True):
                dense = type(shard) in PLAIN and shard.layout == torch.strided and flattened(shard) is not None
                groups.setdefault((shard.dtype, shard.device) if dense else id(tensor), []).append(tensor)
            self._groups = [(group, _copies(locals_of(group))) for group in groups.values()]

    @torch.no_grad()
    def differ(self) -> bool:
        """Whether a tensor has another value now. The host waits for the device."""
        return any(
            not torch.equal(local(tensor), copy)
            for tensors, copies in self._groups
            for tensor, copy in zip(tensors, copies, strict=True)
        )

    def restore(self) -> None:
        """Write the values back.

        Through ``.data``, which leaves version counters alone: a graph that the user keeps across the two passes stays
        usable, for once all is restored its saved tensors have the values they had.
        """
        for tensors, copies in self._groups:  # Often there is none.
            with torch.no_grad():
                pairs = [
                    (tensor.data, copy)
                    for tensor, copy in zip(map(local, tensors), copies, strict=True)
                    if _must_be_written(tensor, copy)
                ]
                if pairs:
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
    if not any(map(Tensor.dim, group)):  # The counters of BatchNorm.
        return list(torch.stack(group).unbind())
    # As vectors, in the order of their memory: channels_last keeps its own.
    flat = [vector for tensor in group for vector in flattened(tensor.detach()) or ()]
    parts = torch.cat(flat).split_with_sizes([vector.numel() for vector in flat])
    return [
        part if tensor.dim() == 1 else part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
        for part, tensor in zip(parts, group, strict=True)
    ]


def _must_be_written(tensor: Tensor, copy: Tensor) -> bool:
    """Whether to write the value back: on the CPU, where comparing is cheap, only if it differs.

    What nobody wrote to may not be writable; a memory-mapped file is not.
    """
    return tensor.device.type != "cpu" or tensor.layout != torch.strided or not torch.equal(tensor, copy)
