"""Tensors whose elements are spread over processes, as FSDP2 and tensor parallelism make them (`DTensor`)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed import all_reduce, get_rank
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import Parameter

PLAIN = {Tensor, Parameter}
"""Types of tensors that are not spread over processes."""


def local(tensor: Tensor) -> Tensor:
    """The elements that this process holds, sharing memory with the tensor; all of them unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor's elements are spread over processes."""
    return not PLAIN.issuperset(map(type, tensors)) and any(isinstance(tensor, DTensor) for tensor in tensors)


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`local` for each tensor of a list."""
    return [local(tensor) for tensor in tensors] if any_sharded(tensors) else list(tensors)


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
            # The shards may have been offloaded to the CPU, while the processes talk through their accelerators.
            value = value.to(first.device_mesh.device_type)
            for dim, place in enumerate(first.placements):
                # All other placements are shards. Not all say so by `is_shard`: FSDP2 over tensor parallelism does not.
                if not isinstance(place, Replicate):
                    all_reduce(value, group=first.device_mesh.get_group(dim))
        total = value if total is None else total + value.to(total.device)
    assert total is not None, "an empty list has no sum"
    return total


def whole_of(tensor: Tensor) -> Tensor | None:
    """All elements of a tensor, for a checkpoint file, which the first process writes.

    Args:
        tensor: if it is sharded, every process has to call this.

    Returns:
        The tensor itself, or, if it is sharded, all of it in the CPU's memory on the first process, None on the others.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    here: DTensor = tensor.to(tensor.device_mesh.device_type)  # type: ignore[assignment]
    whole = here.full_tensor()
    return whole.cpu() if get_rank() == 0 else None


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of ``tensor``, on the device of ``like`` and sharded over the same processes.

    Args:
        tensor: all elements, on every process.
        like: a tensor of the same shape. If it is sharded, every process has to call this.
    """
    if not isinstance(like, DTensor):
        return tensor.to(like.device, copy=True)
    # `distribute_tensor` cannot make all placements, such as those of FSDP2 over tensor parallelism. So it is found out
    # where in the whole the elements of this process are: they are numbered, gathered, and looked up.
    here = like.to_local()
    first = get_rank() * like.numel()
    numbers = torch.arange(first, first + here.numel(), device=like.device_mesh.device_type).view(here.shape)
    gathered = DTensor.from_local(
        numbers, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()
    gathered = gathered.to(here.device)
    mine = (gathered >= first) & (gathered < first + here.numel())
    shard = torch.empty_like(here, dtype=tensor.dtype).flatten()
    shard[gathered[mine] - first] = tensor.to(here.device)[mine]
    return DTensor.from_local(
        shard.view(here.shape),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
