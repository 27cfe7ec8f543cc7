"""Tensors whose elements are spread over processes, as FSDP2 and tensor parallelism make them (`DTensor`)."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The elements that this process holds, sharing memory with the tensor; all of them unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor's elements are spread over processes."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def sum_over_shards(measure: Callable[..., Tensor], *lists: Sequence[Tensor]) -> Tensor:
    """The sum of what ``measure`` finds on the shards of all processes.

    Args:
        measure: called with aligned lists of tensors of this process, as many lists as are given; must be additive over
            elements, and return tensors of one shape.
        *lists: aligned lists of tensors of equal shape and sharding. A copy that several processes hold counts once.

    Returns:
        The sum, a plain tensor, the same on every process.
    """
    groups: dict[object, list[int]] = {}
    for index, tensor in enumerate(lists[0]):
        where = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        groups.setdefault(where, []).append(index)
    total: Tensor | None = None
    for indices in groups.values():
        found = measure(*([local(tensors[index]) for index in indices] for tensors in lists))
        first = lists[0][indices[0]]
        if isinstance(first, DTensor):
            placements = [Partial() if each.is_shard() else each for each in first.placements]
            found = DTensor.from_local(found, first.device_mesh, placements, run_check=False).full_tensor()
        total = found if total is None else total + found
    assert total is not None, "an empty list has no sum"
    return total


def whole_of(tensor: Tensor) -> Tensor:
    """All elements of a tensor, for a file; every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of ``tensor``, on the device of ``like`` and over the same processes."""
    tensor = tensor.to(like.device, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
