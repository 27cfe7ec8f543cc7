"""Lists of tensors cut for arithmetic: by device and dtype, and in pieces that stay in cache."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor

from lightning_same.gradients.sharding import locals_of

PIECE = 1 << 17
"""Elements per piece on the CPU. g, s and the temporaries of one piece fit a core's L2 cache, so a formula of ten
operations reads and writes main memory once, not ten times."""

RUN = 1 << 18
"""Elements per run of whole tensors on the CPU."""

ACCELERATOR_PIECE = 1 << 25
"""Elements per piece on accelerators, where launching a kernel costs more: ResNet-50 is one. Temporaries are 128 MiB
each in float32, at a time when no activations are there."""

_dtype_of = attrgetter("dtype")


def by_kind(*lists: Sequence[Tensor]) -> list[tuple[list[Tensor], ...]]:
    """Group aligned lists by device and dtype, as operations on lists of tensors need them to be fast.

    Args:
        *lists: as many tensors each. Of sharded tensors, the elements on this process are taken.

    Returns:
        The lists of each group.

    Example:
        >>> mixed = [torch.ones(1), torch.ones(2).double(), torch.ones(3)]
        >>> [[tensor.numel() for tensor in group] for (group,) in by_kind(mixed)]
        [[1, 3], [2]]
    """
    shards = tuple(map(locals_of, lists))
    dtypes = sum([len(set(map(_dtype_of, tensors))) for tensors in shards])
    if dtypes == len(lists) and len(set(map(Tensor.get_device, chain(*shards)))) == 1:
        return [shards]  # As nearly always, and five times as fast.
    groups: dict[tuple[object, ...], list[tuple[Tensor, ...]]] = {}
    for row in zip(*shards, strict=True):
        kind = tuple(attribute for tensor in row for attribute in (tensor.device, tensor.dtype))
        groups.setdefault(kind, []).append(row)
    return [tuple(map(list, zip(*rows, strict=True))) for rows in groups.values()]


def runs(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Cut a list into runs of a bounded number of elements, so that temporaries are as large as a run, not as the list.

    Args:
        tensors: any tensors. A tensor that is larger than the bound makes a run of its own.

    Yields:
        Slices that cover the list.
    """
    start = elements = 0
    for stop, tensor in enumerate(tensors):
        most = RUN if tensor.device.type == "cpu" else ACCELERATOR_PIECE
        if elements and elements + tensor.numel() > most:
            yield slice(start, stop)
            start, elements = stop, 0
        elements += tensor.numel()
    if tensors:
        yield slice(start, len(tensors))


def pieces(*lists: Sequence[Tensor]) -> Iterator[tuple[tuple[Tensor, ...], ...]]:
    """Cut aligned lists of tensors into aligned pieces of a bounded number of elements.

    Args:
        *lists: as many tensors each, of the same shapes in the same order.

    Yields:
        For each piece, the tensors of each list: slices of a large tensor, or several small ones of one device and
        dtype. All are views; together the pieces cover every element once. They are flat, unless a tensor has gaps or
        its elements lie in another order than those of the other lists.
    """
    waiting: dict[object, list[tuple[Tensor, ...]]] = {}
    filled: Counter[object] = Counter()
    for row in zip(*map(locals_of, lists), strict=True):
        flat = flattened(*row)
        if flat is None:
            yield tuple((tensor,) for tensor in row)
            continue
        elements = flat[0].numel()
        most = PIECE if flat[0].device.type == "cpu" else ACCELERATOR_PIECE
        if elements >= most:
            for slices in zip(*(torch.split(tensor, most) for tensor in flat), strict=True):
                yield tuple((part,) for part in slices)
        else:
            kind = (flat[0].device, *(tensor.dtype for tensor in flat))
            if filled[kind] + elements > most:
                yield tuple(zip(*waiting.pop(kind), strict=True))
                filled[kind] = 0
            waiting.setdefault(kind, []).append(flat)
            filled[kind] += elements
    for rows in waiting.values():
        yield tuple(zip(*rows, strict=True))


def flattened(*tensors: Tensor) -> tuple[Tensor, ...] | None:
    """Views of tensors of one shape as vectors, with their elements in one order; None if there are no such views."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            break
    else:
        return tuple([tensor if tensor.dim() == 1 else tensor.view(-1) for tensor in tensors])
    # Dense in another order of dimensions, such as channels_last.
    if len({tensor.stride() for tensor in tensors}) == 1 and _is_dense(tensors[0]):
        return tuple([tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors])
    return None


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie without gaps or overlaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def joined(views: Sequence[Tensor]) -> Tensor:
    """One tensor that holds the views end to end; a single view is returned as it is."""
    return views[0] if len(views) == 1 else torch.cat(tuple(views))
