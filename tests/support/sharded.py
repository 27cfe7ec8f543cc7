"""A module whose parameters are sharded by FSDP2, and its weights in one piece."""

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from support.nets import Plain

needs_fsdp2 = pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP2 runs on a CPU from torch 2.7.0 on")


class Sharded(Plain):
    """The last layer has 3 rows: on 2 ranks the shards are ragged, on 4 one is empty."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.layers[0], mesh=mesh)
        fully_shard(self.layers, mesh=mesh)


def strategy() -> dict[str, Any]:
    size = torch.distributed.get_world_size()
    sharded = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1, process_group_backend="gloo")
    return {"devices": size, "strategy": sharded}


def whole(module: Any) -> list[Tensor]:
    params = [param.detach() for param in module.parameters()]
    return [param.full_tensor() if hasattr(param, "full_tensor") else param for param in params]
