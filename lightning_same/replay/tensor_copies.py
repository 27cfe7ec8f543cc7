"""Copies of many tensors, made and written back by a number of operations that does not grow with theirs."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_same.gradients.pieces import flattened
from lightning_same.gradients.sharding import PLAIN, any_sharded, locals_of

KNOW_THEIR_MEMORY = frozenset({"cpu", "cuda", "mps"})
"""Types of device on which a tensor tells whether it is another view of the same memory."""

SPARE = 2
"""How many blocks are kept for the next copies: those before and after pass one are there at the same time."""

SPARE_BYTES = 1 << 24
"""Larger ones are not kept, so that a step holds no more than it needs at each moment. ResNet-50's take 1/80."""

_dtype_of = operator.attrgetter("dtype")

Shape: TypeAlias = tuple[torch.Size, tuple[int, ...]]
"""The shape and the strides of a tensor."""


class Group(NamedTuple):
    """Tensors of one dtype and device, which are copied together; or one that is sparse or has gaps, by itself.

    Attributes:
        tensors: the tensors.
        memory: where the values are, through ``.data``, which leaves version counters alone: as vectors, in the order
            of the memory, so that channels_last keeps its own; of the one by itself, as it is.
        shapes: those of each.
        unwritten: the indices of those in a CPU's memory that have never been seen to differ from their copies. What
            nobody writes to may not be writable; a memory-mapped file is not. So these are compared first.
    """

    tensors: list[Tensor]
    memory: list[Tensor]
    shapes: list[Shape | None]
    unwritten: set[int]

    def add(self, tensor: Tensor, memory: Tensor, shape: Shape | None) -> None:
        """Append a tensor."""
        if _compares(memory):
            self.unwritten.add(len(self.tensors))
        self.tensors.append(tensor)
        self.memory.append(memory)
        self.shapes.append(shape)

    def forget_written(self, copies: Sequence[Tensor]) -> set[int]:
        """Of those in ``unwritten``, leave those that are still as their copies are; return them."""
        self.unwritten.difference_update(
            [index for index in self.unwritten if not torch.equal(self.memory[index], copies[index])]
        )
        return self.unwritten


class Block:
    """Copies of a group's values. One piece of memory for all; cutting it takes longer than filling it.

    Args:
        group: the group.

    Attributes:
        parts: the copies.
    """

    def __init__(self, group: Group) -> None:
        self._memory = group.memory
        self._whole: Tensor | None = None
        if group.shapes[0] is None:
            self.parts = [group.memory[0].clone()]
            return
        with torch.inference_mode(False):  # Or it could not be filled again in training.
            self._whole = torch.cat(group.memory)
            self.parts = list(self._whole.split_with_sizes(list(map(Tensor.numel, group.memory))))

    def fill(self) -> None:
        """Copy the values again."""
        if self._whole is None:
            self.parts = [self._memory[0].clone()]
        else:
            torch.cat(self._memory, out=self._whole)


class TensorGroups:
    """Tensors in the groups in which they are copied. Of sharded tensors, the elements on this process.

    Args:
        tensors: any, each once.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        by_kind: dict[tuple[torch.dtype, torch.device], Group] = {}
        self.groups: list[Group] = []
        with torch.no_grad():
            shards = locals_of(self.tensors)
        self._is_sharded = any_sharded(self.tensors)
        self._memory = list(map(_memory_of, shards))
        for tensor, shard, memory in zip(self.tensors, shards, self._memory, strict=True):
            is_dense = type(shard) in PLAIN and shard.layout == torch.strided
            vector = flattened(memory) if is_dense else None
            if vector is None:
                self.groups.append(Group([], [], [], set()))
                self.groups[-1].add(tensor, memory, None)
            else:
                group = by_kind.setdefault((shard.dtype, shard.device), Group([], [], [], set()))
                group.add(tensor, vector[0], (shard.shape, shard.stride()))
        self.groups += by_kind.values()
        self._know_their_memory = all(
            type(shard) in PLAIN
            and shard.layout == torch.strided
            and shard.device.type in KNOW_THEIR_MEMORY
            and not shard.is_quantized
            for shard in shards
        )
        self._keeps_spare = sum(shard.nbytes for shard in shards if shard.layout == torch.strided) <= SPARE_BYTES
        self._places = [] if self._know_their_memory else _places_of(self.tensors)
        self._spare: list[Sequence[Block]] = []

    @torch.no_grad()
    def copied(self) -> Sequence[Block]:
        """The values now, of each group, in blocks that were given back if there are any."""
        if not self._spare:
            return list(map(Block, self.groups))
        blocks = self._spare.pop()
        for block in blocks:
            block.fill()
        return blocks

    def take_back(self, blocks: Sequence[Block]) -> None:
        """Keep blocks whose values nobody needs any more, for the next ones."""
        if self._keeps_spare and len(self._spare) < SPARE:
            self._spare.append(blocks)

    def have_moved(self) -> bool:
        """Whether the values of a tensor lie in another way now, as by ``tensor.data = ...``, ``resize_`` or ``t_``."""
        if not self.tensors:
            return False
        if not self._know_their_memory:
            return _places_of(self.tensors) != self._places
        # Of the tensors themselves, also where a mode hands out others, as for measurements in float64.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            shards = locals_of(self.tensors) if self._is_sharded else self.tensors
            return not all(map(Tensor.is_set_to, shards, self._memory))


class TensorCopies:
    """The values of tensors at one moment, each group copied into one block by one operation.

    Args:
        tensors: any, each once; or their groups, if these are known and have not moved.
    """

    _blocks: Sequence[Block] = ()

    def __init__(self, tensors: Iterable[Tensor] | TensorGroups) -> None:
        self._of = tensors if isinstance(tensors, TensorGroups) else TensorGroups(tensors)
        self._blocks = self._of.copied()
        self._copies = [(group, block.parts) for group, block in zip(self._of.groups, self._blocks, strict=True)]

    def __del__(self) -> None:
        if self._blocks:
            self._of.take_back(self._blocks)

    @torch.no_grad()
    def differ(self) -> bool:
        """Whether a tensor has another value now. The host waits for the device."""
        return not all(all(map(torch.equal, now, copies)) for _, now, copies in self._now_and_then())

    @torch.no_grad()
    def restore(self, *, in_place: bool = False) -> None:
        """Write the values back.

        Through ``.data``, which leaves version counters alone: a graph that the user keeps across the two passes stays
        usable, for once all is restored its saved tensors have the values they had.

        Args:
            in_place: whether it is known that no tensor has moved.
        """
        for group, now, copies in self._now_and_then(moved=False if in_place else None):
            same = group.forget_written(copies)
            if same:
                written = [index not in same for index in range(len(now))]
                now, copies = list(compress(now, written)), list(compress(copies, written))
            if now:
                torch._foreach_copy_(now, copies)

    @torch.no_grad()
    def release(self, tensors: Iterable[Tensor]) -> None:
        """Write the values of some of them back for the last time, and hold those no longer."""
        released = {id(tensor) for tensor in tensors}
        kept = []
        for group, now, copies in self._now_and_then():
            rest, values = Group([], [], [], set()), []
            for tensor, memory, shape, here, value in zip(*group[:3], now, copies, strict=True):
                if id(tensor) in released:
                    here.copy_(value)
                else:
                    rest.add(tensor, memory, shape)
                    values.append(value)
            if values:
                kept.append((rest, values))
        self._copies = kept

    def _now_and_then(self, moved: bool | None = None) -> Iterator[tuple[Group, list[Tensor], list[Tensor]]]:
        """Of each group, where its values are now, and the copies."""
        if moved is None:
            moved = bool(self._copies) and self._of.have_moved()
        for group, copies in self._copies:
            if not moved:
                yield group, group.memory, copies
                continue
            here = Group([], [], [], set())
            for tensor, shard, shape in zip(group.tensors, locals_of(group.tensors), group.shapes, strict=True):
                here.add(tensor, _memory_of(shard), shape)
            yield here, here.memory, list(map(_shaped, copies, group.shapes))


def addresses_of(tensors: Sequence[Tensor], *, sharded: bool | None = None) -> list[int]:
    """Where the values of tensors are, on this process. Sparse ones have several places: themselves.

    Args:
        tensors: any.
        sharded: whether one is sharded, if that is known.
    """
    if any_sharded(tensors) if sharded is None else sharded:
        with torch.no_grad():
            tensors = locals_of(tensors)
    try:
        return list(map(Tensor.data_ptr, tensors))
    except RuntimeError:
        return [tensor.data_ptr() if tensor.layout == torch.strided else id(tensor) for tensor in tensors]


def _places_of(tensors: Sequence[Tensor]) -> list[object]:
    """Where the values of tensors are, and how they lie there."""
    # Of the tensors themselves, also where a mode hands out others, as for measurements in float64.
    with torch._C.DisableTorchFunction():
        if any_sharded(tensors):
            with torch.no_grad():
                tensors = locals_of(tensors)
        places: list[object] = [*addresses_of(tensors), *map(Tensor.size, tensors), *map(_dtype_of, tensors)]
        return places + [tensor.stride() for tensor in tensors if tensor.layout == torch.strided]


def _memory_of(tensor: Tensor) -> Tensor:
    """Another view of a tensor's memory; a sparse one has no other."""
    return tensor.data if tensor.layout == torch.strided else tensor


def _shaped(copy: Tensor, shape: Shape | None) -> Tensor:
    """A copy in the shape of its tensor."""
    return copy if shape is None else copy.as_strided(*shape, copy.storage_offset())


def _compares(memory: Tensor) -> bool:
    """Whether values are compared before they are written back: on the CPU, where that is cheap."""
    return memory.device.type == "cpu" and memory.layout == torch.strided
