"""Arithmetic on lists of tensors: one norm over all of them, and elementwise formulas in pieces that stay in cache."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_same.gradients.sharding import any_sharded, local, sum_over_shards

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


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all elements of all tensors, on the device, in at least float32.

    Args:
        tensors: any shapes; an empty list has norm 0. Sharded tensors count as a whole.

    Returns:
        A scalar tensor.

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
    dtype = torch.float32
    for tensor_dtype in {tensor.dtype for tensor in tensors}:
        dtype = torch.promote_types(dtype, tensor_dtype)
    norms: Sequence[Tensor] = torch._foreach_norm(list(tensors), 2, dtype)
    if len({tensor.device for tensor in tensors}) > 1:
        norms = [norm.to(tensors[0].device) for norm in norms]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
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
    shards = [shard for shard in map(local, tensors) if shard.numel()]
    if not shards:
        return torch.tensor(True)
    largest = [norm.to(shards[0].device) for norm in torch._foreach_norm(shards, float("inf"))]
    return torch.stack(largest).isfinite().all()


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
    device, dtype = first[0].device, torch.promote_types(torch.float32, first[0].dtype)
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


def add_scaled_(tensors: Sequence[Tensor], vectors: Sequence[Tensor], scale: Tensor, factors: Sequence[float]) -> None:
    """Add factor * scale * vector to each tensor in place.

    Args:
        tensors: overwritten; shards of this process where they are sharded.
        vectors: as many, of the same shapes; read only.
        scale: a scalar tensor on their device.
        factors: a number for each tensor, none of which is 0.

    Example:
        >>> w = torch.zeros(2)
        >>> add_scaled_([w], [torch.tensor([1.0, 2.0])], torch.tensor(0.5), [4.0])
        >>> w
        tensor([2., 4.])
    """
    # The one operation rounds the scale to the tensor's dtype, and half precision may not hold 1/norm.
    if all(t.device.type in ONE_CALL and t.dtype in (torch.float32, torch.float64) for t in tensors):
        torch._foreach_addcmul_(list(tensors), list(vectors), [scale] * len(tensors), list(factors))
        return
    scale = scale * factors[0]
    shares = [factor / factors[0] for factor in factors] if len(set(factors)) > 1 else None
    for run in runs(tensors):
        step = torch._foreach_mul(list(vectors[run]), scale)
        if shares is not None:
            torch._foreach_mul_(step, shares[run])
        torch._foreach_add_(list(tensors[run]), step)
        del step  # Or two of them would be allocated at once.


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


def pieces(
    first: Sequence[Tensor], second: Sequence[Tensor]
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Cut two aligned lists of tensors into aligned pieces of a bounded number of elements.

    Args:
        first: any tensors.
        second: as many, of the same shapes in the same order.

    Yields:
        For each piece, the tensors of ``first`` and those of ``second``: slices of a large tensor, or several small
        ones of one dtype and device. All are views; together the pieces cover every element once.
    """
    waiting: dict[tuple[torch.device, torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    filled: Counter[tuple[torch.device, torch.dtype, torch.dtype]] = Counter()
    for a, b in zip(map(local, first), map(local, second), strict=True):
        if not (a.is_contiguous() and b.is_contiguous()):
            yield (a,), (b,)
            continue
        most = PIECE if a.device.type == "cpu" else ACCELERATOR_PIECE
        if a.numel() >= most:
            for x, y in zip(torch.split(a.view(-1), most), torch.split(b.view(-1), most), strict=True):
                yield (x,), (y,)
        else:
            kind = (a.device, a.dtype, b.dtype)
            if filled[kind] + a.numel() > most:
                xs, ys = zip(*waiting.pop(kind), strict=True)
                yield xs, ys
                filled[kind] = 0
            waiting.setdefault(kind, []).append((a.view(-1), b.view(-1)))
            filled[kind] += a.numel()
    for pairs in waiting.values():
        xs, ys = zip(*pairs, strict=True)
        yield xs, ys


def joined(views: Sequence[Tensor]) -> Tensor:
    """One tensor that holds the views end to end; a single view is returned as it is."""
    return views[0] if len(views) == 1 else torch.cat(tuple(views))


def elementwise_(
    formula: Callable[[Tensor, Tensor], Tensor], first: Sequence[Tensor], second: Sequence[Tensor]
) -> None:
    """Overwrite ``second`` with ``formula(first, second)``, piece by piece.

    Args:
        formula: acts on each element alone. It is called with tensors of equal shape, must not change the first and may
            overwrite the second.
        first: read only.
        second: receives the results.

    Example:
        >>> s = torch.tensor([3.0, 4.0])
        >>> elementwise_(torch.minimum, [torch.tensor([1.0, 5.0])], [s])
        >>> s
        tensor([1., 4.])
    """
    for a, b in pieces(first, second):
        result = formula(joined(a), joined(b))
        if len(b) == 1:
            if result is not b[0]:
                b[0].copy_(result)
        else:
            torch._foreach_copy_(b, torch.split(result, [view.numel() for view in b]))
