"""Modules whose parameters are sharded by FSDP2, and their weights in one piece."""

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler

from support.nets import Plain, collate, loader

needs_fsdp2 = pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP2 runs on a CPU from torch 2.7.0 on")


class Sharded(Plain):
    """The last layer has 3 rows: on 2 ranks the shards are ragged, on 4 one is empty."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.layers[0], mesh=mesh)
        fully_shard(self.layers, mesh=mesh)


class TwoDimensional(Plain):
    """The first layer by columns, the second by rows, and both over the data-parallel processes."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.layers, self.device_mesh["tensor_parallel"], plan)
        fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def train_dataloader(self) -> DataLoader:
        """Processes of one tensor-parallel group read the same samples."""
        whole = DataLoader(super().train_dataloader().dataset, 8, collate_fn=collate)
        if self.device_mesh is None:
            return whole
        data_parallel = self.device_mesh["data_parallel"]
        sampler = DistributedSampler(whole.dataset, data_parallel.size(), data_parallel.get_local_rank(), shuffle=False)
        return DataLoader(whole.dataset, 8 // data_parallel.size(), sampler=sampler, collate_fn=collate)


class Validated(Sharded):
    """With a validation loop that can be left out, and options of `fully_shard`; notes the loss of every pass.

    Args:
        reshard: ``reshard_after_forward``.
        keeps_whole: whether the parameters stay whole after a backward; it then reshards when the batch ends.
    """

    def __init__(self, reshard: bool | int | None = None, keeps_whole: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reshard, self.keeps_whole = reshard, keeps_whole
        self.seen: list[float] = []

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        options: Any = {"mesh": self.device_mesh["data_parallel"], "reshard_after_forward": self.reshard}
        fully_shard(self.layers[0], **options)
        fully_shard(self.layers, **options)
        if self.keeps_whole:
            self.layers.set_reshard_after_backward(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.keeps_whole and self.device_mesh is not None:
            for layer in (self.layers, self.layers[0]):
                layer.reshard()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), sync_dist=True)

    def val_dataloader(self) -> DataLoader:
        return loader(16, 8, self.dtype)


def strategy() -> dict[str, Any]:
    """Options of the Trainer: FSDP2 over all processes of the group, if there is one."""
    if not torch.distributed.is_initialized():
        return {}
    size = torch.distributed.get_world_size()
    sharded = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1, process_group_backend="gloo")
    return {"devices": size, "strategy": sharded}


def whole(module: Any) -> list[Tensor]:
    for layer in module.modules():
        if isinstance(layer, FSDPModule):
            layer.reshard()
    params = [param.detach() for param in module.parameters()]
    return [param.full_tensor() if hasattr(param, "full_tensor") else param for param in params]
