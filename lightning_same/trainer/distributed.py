"""What the two passes ask of several processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


def ddp_model(trainer: pl.Trainer) -> DistributedDataParallel | None:
    """The model as DDP has wrapped it, if it has."""
    model = trainer.strategy.model
    return model if isinstance(model, DistributedDataParallel) else None


def reshard(modules: Iterable[object]) -> None:
    """Let FSDP2 give up the whole parameters that it has gathered, so that the modules hold their shards.

    A forward without a backward leaves them gathered, such as a validation loop's, and so may any forward or backward,
    by ``reshard_after_forward`` and `set_reshard_after_backward`. The next forward would use them as they are, whatever
    has become of the shards. Takes no communication.

    Args:
        modules: all modules of a model, outside of a forward and a backward. Others than FSDP2's are left alone.
    """
    for module in sharded_modules(modules):
        module.reshard()


def sharded_modules(modules: Iterable[object]) -> list[FSDPModule]:
    """Of modules, those whose parameters FSDP2 shards."""
    return [module for module in modules if isinstance(module, FSDPModule)]


def unsynchronized(strategy: Strategy) -> AbstractContextManager[None]:
    """Gradients of forwards in this context stay on their process."""
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


def start_mean(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to average aligned lists of tensors over the processes, by one reduction for each kind of tensor.

    Args:
        tensors: the same shapes on every process; read at once.

    Returns:
        To be called for the averages, which waits for the reduction.
    """
    world_size = distributed.get_world_size()
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
    under_way = []
    for indices in kinds.values():
        flat = torch.cat([tensors[index].reshape(-1) for index in indices]).div_(world_size)
        under_way.append((indices, flat, distributed.all_reduce(flat, async_op=True)))
    shapes = [tensor.shape for tensor in tensors]

    def finish() -> list[Tensor]:
        means: dict[int, Tensor] = {}
        for indices, flat, work in under_way:
            if work is not None:
                work.wait()
            views = torch.split(flat, [shapes[index].numel() for index in indices])
            means |= {index: view.view(shapes[index]) for index, view in zip(indices, views, strict=True)}
        return [means[index] for index in range(len(shapes))]

    return finish


def sum_over_processes(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself may be overwritten.

    By one all-reduce. The strategy's own `reduce` waits in a barrier before it.
    """
    if trainer.world_size > 1:
        if not distributed.is_initialized():
            return trainer.strategy.reduce(tensor, reduce_op="sum")
        distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def take_buffers_of_rank_zero(trainer: pl.Trainer, module: nn.Module) -> None:
    """Write the buffers of rank zero into the module, which are what a checkpoint file holds.

    Every process has running statistics of its own batches. Where the buffers of some process have other names, shapes
    or dtypes, nothing is written, and a warning is given.
    """
    if trainer.world_size == 1:
        return
    buffers = {name: buffer for name, buffer in module.named_buffers() if _can_be_written(buffer)}
    described = [(name, tuple(buffer.shape), str(buffer.dtype)) for name, buffer in buffers.items()]
    of_first = trainer.strategy.broadcast(described, src=0)
    differs = torch.tensor(float(of_first != described), device=trainer.strategy.root_device)
    if sum_over_processes(trainer, differs).item():
        rank_zero_warn(
            f"{type(module).__name__} has buffers of other names, shapes or dtypes on another process. Each process"
            " measures with its own."
        )
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for buffer in buffers.values():
        kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
    for alike in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in alike])
        distributed.broadcast(flat, src=0)
        for buffer, part in zip(alike, torch.split(flat, [buffer.numel() for buffer in alike]), strict=True):
            buffer.copy_(part.view_as(buffer))


def _can_be_written(buffer: Tensor) -> bool:
    """Whether a buffer is a state: no result of a forward, and no view that holds an element at several places."""
    state = not (nn.parameter.is_lazy(buffer) or buffer.is_inference()) and buffer.grad_fn is None
    return state and buffer.layout == torch.strided and (buffer.is_contiguous() or 0 not in buffer.stride())
