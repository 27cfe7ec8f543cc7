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
    """The sum of ``measure`` over the shards of all processes.

    Args:
        measure: called with lists of this process's elements, as many lists as are given. It must be additive over
            elements, and return a tensor of the same shape at every call.
        *lists: aligned lists of tensors of equal shape and sharding. A copy that several processes hold counts once.

    Returns:
        The sum, a plain tensor, the same on every process.
    """
    by_placement: dict[object, list[int]] = {}
    for index, tensor in enumerate(lists[0]):
        placement = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        by_placement.setdefault(placement, []).append(index)
    total: Tensor | None = None
    for indices in by_placement.values():
        value = measure(*([local(tensors[index]) for index in indices] for tensors in lists))
        first = lists[0][indices[0]]
        if isinstance(first, DTensor):
            placements = [Partial() if placement.is_shard() else placement for placement in first.placements]
            value = DTensor.from_local(value, first.device_mesh, placements, run_check=False).full_tensor()
        total = value if total is None else total + value
    assert total is not None, "an empty list has no sum"
    return total


def whole_of(tensor: Tensor) -> Tensor:
    """All elements of a tensor, for a checkpoint file; every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of ``tensor``, on the device of ``like`` and sharded over the same processes."""
    tensor = tensor.to(like.device, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
