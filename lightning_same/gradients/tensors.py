"""Arithmetic on lists of tensors: one norm over all of them, and elementwise formulas in pieces that stay in cache."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, compress
from operator import attrgetter

import torch
from torch import Tensor

from lightning_same.gradients.sharding import any_sharded, locals_of, sum_over_shards

PIECE = 1 << 17
"""Elements per piece on the CPU. g, s and the temporaries of one piece fit a core's L2 cache, so a formula of ten
operations reads and writes main memory once, not ten times."""

RUN = 1 << 18
"""Elements per run of whole tensors on the CPU."""

ACCELERATOR_PIECE = 1 << 24
"""Elements per piece on accelerators, where launching a kernel costs more. Temporaries stay small beside the model."""

ONE_CALL = frozenset({"cpu"})
"""Types of device on which factor * scale * vector is added by one operation. On accelerators that would take one
kernel for each tensor."""

Formula = Callable[..., Tensor]
"""Acts on each element alone, on tensors of equal shape."""

Rounding = Callable[[Tensor, torch.dtype], Tensor]
"""Makes values of a dtype of numbers of more precision."""


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
    shards = tuple([locals_of(tensors) for tensors in lists])
    one_device = len(set(map(Tensor.get_device, chain(*shards)))) == 1
    if one_device and all(len(set(map(_dtype_of, tensors))) == 1 for tensors in shards):
        return [shards]  # As nearly always, and five times as fast.
    groups: dict[tuple[object, ...], list[tuple[Tensor, ...]]] = {}
    for row in zip(*shards, strict=True):
        kind = tuple(attribute for tensor in row for attribute in (tensor.device, tensor.dtype))
        groups.setdefault(kind, []).append(row)
    return [tuple(map(list, zip(*rows, strict=True))) for rows in groups.values()]


def copy_all_(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copy each tensor of ``source`` into its counterpart in ``to``, by one operation for each device and dtype."""
    for here, there in by_kind(to, source):
        torch._foreach_copy_(here, there)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all elements of all tensors, on the device, in at least float32.

    Args:
        tensors: any shapes; an empty list has norm 0. Sharded tensors count as a whole.

    Returns:
        A scalar tensor, on the device of the first.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
        tensor(5.)
    """
    if not tensors:
        return torch.zeros(())
    if any_sharded(tensors):
        return sum_over_shards(lambda shards: _norm(shards).square(), tensors).sqrt()
    return _norm(tensors)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = []
    for (group,) in by_kind(tensors):
        by_tensor: Sequence[Tensor] = torch._foreach_norm(group, 2, at_least_float32(group[0]))
        norms.append(torch.linalg.vector_norm(torch.stack(list(by_tensor))))
    return _norm_of_norms(norms)


def norm_of(formula: Formula, *lists: Sequence[Tensor]) -> Tensor:
    """The L2 norm of ``formula(*lists)`` over all elements, which are computed in pieces and not kept.

    Args:
        formula: is called with pieces of the lists, in at least float32.
        *lists: aligned lists of tensors. Sharded tensors count as a whole.

    Returns:
        A scalar tensor, on the device of the first tensor, in at least float32.

    Example:
        >>> norm_of(torch.mul, [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 2.0])])
        tensor(5.)
    """

    def norm(*shards: Sequence[Tensor]) -> Tensor:
        return _norm_of_norms(
            [torch.linalg.vector_norm(formula(*map(widened, map(joined, piece)))) for piece in pieces(*shards)]
        )

    if any_sharded(lists[0]):
        return sum_over_shards(lambda *shards: norm(*shards).square(), *lists).sqrt()
    return norm(*lists)


def _norm_of_norms(norms: Sequence[Tensor]) -> Tensor:
    if len(norms) == 1:
        return norms[0]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return norm


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no element is inf or NaN.

    Args:
        tensors: any shapes. Of sharded tensors, only the elements on this process are looked at.

    Returns:
        A boolean scalar tensor on the device.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([float("inf")])])
        tensor(False)
    """
    # An empty shard has no largest element.
    shards = [shard for shard in locals_of(tensors) if shard.numel()]
    if not shards:
        return torch.tensor(True)
    finite = [
        torch.stack(list(torch._foreach_norm(group, float("inf")))).isfinite().all() for (group,) in by_kind(shards)
    ]
    return finite[0] if len(finite) == 1 else torch.stack([flag.to(shards[0].device) for flag in finite]).all()


def global_dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The dot product over all elements of two aligned lists, on the device, in at least float32.

    Args:
        first: tensors of any shapes; sharded tensors count as a whole.
        second: as many, of the same shapes.

    Returns:
        A scalar tensor.

    Example:
        >>> global_dot([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        tensor(11.)
    """
    return sum_over_shards(_dot, first, second) if any_sharded(first) else _dot(first, second)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    device, dtype = first[0].device, at_least_float32(first[0])
    dots = [
        torch.dot(joined(a).flatten().to(dtype), joined(b).flatten().to(dtype)).to(device)
        for a, b in pieces(first, second)
    ]
    return torch.stack(dots).sum()


def inverse(norm: Tensor) -> Tensor:
    """1/norm, and 0 where norm is 0 or so small that 1/norm is infinite; decided on the device.

    Example:
        >>> inverse(torch.tensor([4.0, 0.0]))
        tensor([0.2500, 0.0000])
    """
    return norm.reciprocal().nan_to_num_(nan=float("nan"), posinf=0.0, neginf=0.0)


def add_scaled_(
    tensors: Sequence[Tensor],
    vectors: Sequence[Tensor],
    scale: Tensor,
    factors: Sequence[float],
    formula: Formula | None = None,
    others: Sequence[Sequence[Tensor]] = (),
    rounding: Rounding | None = None,
) -> None:
    """Add factor * scale * formula(vector, *others, tensor) to each tensor in place.

    The sum is computed in at least float32 and rounded once. Temporaries are of a bounded size, and the number of
    operations does not grow with the number of tensors.

    Args:
        tensors: overwritten; of sharded tensors, the elements on this process.
        vectors: as many, of the same shapes; read only.
        scale: a scalar tensor.
        factors: a number for each tensor.
        formula: is called with pieces of ``vectors``, ``others`` and ``tensors``, which it must not change, in at least
            float32. Default: the vector itself.
        others: more aligned lists for the formula.
        rounding: how the sum is rounded for tensors of half precision. Default: to the nearest value.

    Example:
        >>> w = torch.zeros(2)
        >>> add_scaled_([w], [torch.tensor([1.0, 2.0])], torch.tensor(0.5), [4.0])
        >>> w
        tensor([2., 4.])
    """
    lists = (vectors, *others, tensors)
    for factor in set(factors):
        chosen = [other == factor for other in factors]
        for *parts, target in by_kind(*(lists if all(chosen) else [list(compress(part, chosen)) for part in lists])):
            here = scale.to(target[0].device)
            if formula is None and target[0].dtype == parts[0][0].dtype == here.dtype:
                _add_scaled_alike(target, parts[0], here, factor)
            else:
                elementwise_(_sum(formula, here * factor, rounding), *parts, target)


def _add_scaled_alike(tensors: list[Tensor], vectors: list[Tensor], scale: Tensor, factor: float) -> None:
    """Add factor * scale * vector, where all have one device and dtype."""
    if scale.device.type in ONE_CALL:
        torch._foreach_addcmul_(tensors, vectors, [scale] * len(tensors), value=factor)
        return
    scale = scale * factor
    for run in runs(tensors):
        step = torch._foreach_mul(vectors[run], scale)
        torch._foreach_add_(tensors[run], step)
        del step  # Or two of them would be allocated at once.


def _sum(formula: Formula | None, scale: Tensor, rounding: Rounding | None) -> Formula:
    def total(*parts: Tensor) -> Tensor:
        tensor = parts[-1]
        e = parts[0] if formula is None else formula(*map(widened, parts))
        dtype = at_least_float32(tensor)
        if tensor.dtype == dtype:
            return tensor.addcmul_(e.to(dtype), scale.to(dtype))
        exact = torch.addcmul(tensor.to(dtype), e.to(dtype), scale.to(dtype))
        return exact if rounding is None else rounding(exact, tensor.dtype)

    return total


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


def elementwise_(formula: Formula, *lists: Sequence[Tensor]) -> None:
    """Overwrite the last list with ``formula(*lists)``, piece by piece.

    Args:
        formula: acts on each element alone. It is called with tensors of equal shape, may overwrite the last and must
            not change the others.
        *lists: aligned lists of tensors. The last receives the results, the others are read only.

    Example:
        >>> s = torch.tensor([3.0, 4.0])
        >>> elementwise_(torch.minimum, [torch.tensor([1.0, 5.0])], [s])
        >>> s
        tensor([1., 4.])
    """
    for piece in pieces(*lists):
        target = piece[-1]
        result = formula(*map(joined, piece))
        if len(target) > 1:
            # Of one dtype, or an accelerator would copy them one by one.
            parts = result.to(target[0].dtype).split_with_sizes([view.numel() for view in target])
            torch._foreach_copy_(target, parts)
        elif result is not target[0]:
            target[0].copy_(result)


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or float32 if that holds more."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return tensor.to(at_least_float32(tensor))
