"""What the two passes ask of several processes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


def ddp_model(trainer: pl.Trainer) -> DistributedDataParallel | None:
    """The model as DDP has wrapped it, if it has."""
    model = trainer.strategy.model
    return model if isinstance(model, DistributedDataParallel) else None


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let FSDP2 give up the whole parameters that it has gathered, so that the modules hold their shards.

    A forward without a backward leaves them gathered, such as a validation loop's, and so may any forward or backward,
    by ``reshard_after_forward`` and `set_reshard_after_backward`. The next forward would use them as they are, whatever
    has become of the shards. Takes no communication.

    Args:
        modules: all modules of a model, outside of a forward and a backward. Others than FSDP2's are left alone.
    """
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


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
