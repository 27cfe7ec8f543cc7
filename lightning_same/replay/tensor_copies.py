"""Copies of many tensors, made and written back by a number of operations that does not grow with theirs."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_same.gradients.pieces import flattened
from lightning_same.gradients.sharding import PLAIN, any_sharded, locals_of

STRIDED = frozenset({torch.strided})

_dtype_of = operator.attrgetter("dtype")
_layout_of = operator.attrgetter("layout")


Shape: TypeAlias = tuple[torch.Size, tuple[int, ...]]
"""The shape and the strides of a tensor."""


class Group(NamedTuple):
    """Tensors of one dtype and device, which are copied together; or one that is sparse or has gaps, by itself.

    Attributes:
        tensors: the tensors.
        memory: where the values are, through ``.data``, which leaves version counters alone: as vectors, in the order
            of the memory, so that channels_last keeps its own; of the one by itself, as it is.
        shapes: those of each.
    """

    tensors: list[Tensor]
    memory: list[Tensor]
    shapes: list[Shape | None]


class TensorGroups:
    """Tensors in the groups in which they are copied. Of sharded tensors, the elements on this process.

    Args:
        tensors: any, each once.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        self._places = _places_of(self.tensors)
        by_kind: dict[tuple[torch.dtype, torch.device], Group] = {}
        self.groups: list[Group] = []
        with torch.no_grad():
            shards = locals_of(self.tensors)
        for tensor, shard in zip(self.tensors, shards, strict=True):
            memory = _memory_of(shard)
            is_dense = type(shard) in PLAIN and shard.layout == torch.strided
            vector = flattened(memory) if is_dense else None
            if vector is None:
                self.groups.append(Group([tensor], [memory], [None]))
            else:
                group = by_kind.setdefault((shard.dtype, shard.device), Group([], [], []))
                group.tensors.append(tensor)
                group.memory.extend(vector)
                group.shapes.append((shard.shape, shard.stride()))
        self.groups += by_kind.values()

    def have_moved(self) -> bool:
        """Whether the values of a tensor lie in another way now, as by ``tensor.data = ...``, ``resize_`` or ``t_``."""
        return _places_of(self.tensors) != self._places


class TensorCopies:
    """The values of tensors at one moment, each group copied into one block by one operation.

    Args:
        tensors: any, each once; or their groups, if these are known and have not moved.
    """

    def __init__(self, tensors: Iterable[Tensor] | TensorGroups) -> None:
        self._of = tensors if isinstance(tensors, TensorGroups) else TensorGroups(tensors)
        self._copies = [(group, _copies(group.memory)) for group in self._of.groups]

    @torch.no_grad()
    def differ(self) -> bool:
        """Whether a tensor has another value now. The host waits for the device."""
        return not all(all(map(torch.equal, now, copies)) for now, copies in self._now_and_then())

    @torch.no_grad()
    def restore(self) -> None:
        """Write the values back.

        Through ``.data``, which leaves version counters alone: a graph that the user keeps across the two passes stays
        usable, for once all is restored its saved tensors have the values they had.
        """
        for now, copies in self._now_and_then():
            if all(map(_compares, now)):
                written = list(map(operator.not_, map(torch.equal, now, copies)))
                now, copies = list(compress(now, written)), list(compress(copies, written))
            if now:
                torch._foreach_copy_(now, copies)

    @torch.no_grad()
    def release(self, tensors: Iterable[Tensor]) -> None:
        """Write the values of some of them back for the last time, and hold those no longer."""
        released = {id(tensor) for tensor in tensors}
        kept = []
        for (group, copies), (now, values) in zip(self._copies, self._now_and_then(), strict=True):
            keep = [id(tensor) not in released for tensor in group.tensors]
            for memory, value, is_kept in zip(now, values, keep, strict=True):
                if not is_kept:
                    memory.copy_(value)
            if any(keep):
                rest = Group(
                    list(compress(group.tensors, keep)),
                    list(compress(group.memory, keep)),
                    list(compress(group.shapes, keep)),
                )
                kept.append((rest, list(compress(copies, keep))))
        self._copies = kept

    def _now_and_then(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Of each group, where its values are now, and the copies."""
        moved = bool(self._copies) and self._of.have_moved()
        for group, copies in self._copies:
            if moved:
                yield list(map(_memory_of, locals_of(group.tensors))), list(map(_shaped, copies, group.shapes))
            else:
                yield group.memory, copies


def addresses_of(tensors: Sequence[Tensor]) -> list[int]:
    """Where the values of tensors are. Sparse ones have several places: themselves."""
    if any_sharded(tensors):
        with torch.no_grad():
            tensors = locals_of(tensors)
    if STRIDED.issuperset(map(_layout_of, tensors)):
        return list(map(Tensor.data_ptr, tensors))
    return [tensor.data_ptr() if tensor.layout == torch.strided else id(tensor) for tensor in tensors]


def _places_of(tensors: Sequence[Tensor]) -> list[object]:
    """Where the values of tensors are, and how they lie there."""
    # Of the tensors themselves, also where a mode hands out others, as for measurements in float64.
    with torch._C.DisableTorchFunction():
        if any_sharded(tensors):
            with torch.no_grad():
                tensors = locals_of(tensors)
        places: list[object] = [*addresses_of(tensors), *map(Tensor.size, tensors), *map(_dtype_of, tensors)]
        if not STRIDED.issuperset(map(_layout_of, tensors)):
            tensors = [tensor for tensor in tensors if tensor.layout == torch.strided]
        places += map(Tensor.stride, tensors)
    return places


def _memory_of(shard: Tensor) -> Tensor:
    """A tensor through ``.data``; one in COO itself, for a copy into its ``.data`` would not be one into it."""
    return shard if shard.layout == torch.sparse_coo else shard.data


def _copies(memory: list[Tensor]) -> list[Tensor]:
    if len(memory) == 1:
        return [memory[0].clone()]
    return list(torch.cat(memory).split_with_sizes(list(map(Tensor.numel, memory))))


def _shaped(copy: Tensor, shape: Shape | None) -> Tensor:
    """A copy in the shape of its tensor."""
    return copy if shape is None else copy.as_strided(*shape, copy.storage_offset())


def _compares(memory: Tensor) -> bool:
    """Whether values are compared before they are written back: on the CPU, where that is cheap.

    What nobody wrote to may not be writable; a memory-mapped file is not.
    """
    return memory.device.type == "cpu" and memory.layout == torch.strided
