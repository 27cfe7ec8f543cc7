"""Arithmetic on lists of tensors: one norm over all of them, and elementwise formulas."""

from collections.abc import Callable, Sequence
from itertools import compress

import torch
from torch import Tensor

from lightning_same.gradients.pieces import by_kind, joined, pieces, runs
from lightning_same.gradients.sharding import any_sharded, locals_of, sum_over_shards

ONE_CALL = frozenset({"cpu"})
"""Types of device on which factor * scale * vector is added by one operation. On accelerators that would take one
kernel for each tensor."""

Formula = Callable[..., Tensor]
"""Acts on each element alone, on tensors of equal shape."""

Rounding = Callable[[Tensor, torch.dtype], Tensor]
"""Makes values of a dtype of numbers of more precision."""


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


def dot_and_square(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The dot product of two aligned lists, and that of the second with itself, in one read of both.

    Args:
        first: tensors of any shapes; sharded tensors count as a whole.
        second: as many, of the same shapes.

    Returns:
        Shape (2,), on the device, in at least float32.

    Example:
        >>> dot_and_square([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        tensor([11., 25.])
    """
    if any_sharded(first):
        return sum_over_shards(_dot_and_square, first, second)
    return _dot_and_square(first, second)


def _dot_and_square(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    device, dtype = first[0].device, at_least_float32(first[0])
    dots = []
    for some_first, some_second in pieces(first, second):
        a, b = joined(some_first).flatten().to(dtype), joined(some_second).flatten().to(dtype)
        dots += [torch.dot(a, b).to(device), torch.dot(b, b).to(device)]
    return torch.stack(dots).view(-1, 2).sum(dim=0)


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
    different = set(factors)
    for factor in different:
        alike = lists
        if len(different) > 1:
            chosen = [other == factor for other in factors]
            alike = tuple([list(compress(part, chosen)) for part in lists])
        for *parts, target in by_kind(*alike):
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
