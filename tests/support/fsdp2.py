"""FSDP2 in the ways in which people use it: hybrid, in bfloat16, offloaded; trained, and resumed."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.func import functional_call

from lightning_same import Rule, with_sam
from support.fits import trainer
from support.nets import build, seed_all
from support.sharded import Validated, whole

DEVICE = "cpu" if os.environ.get("LIGHTNING_SAME_REHEARSAL") or not torch.cuda.is_available() else "cuda"


class Losses:
    """Of all passes. No list of the module's own, which would be put back after pass two."""

    def __init__(self) -> None:
        self.values: list[float] = []


class Kind(Validated):
    """A module sharded in some way.

    Args:
        way: "plain", "hybrid", "bfloat16" or "offloaded".
        device: "cpu" or "cuda".
    """

    def __init__(self, way: str, device: str = "cpu") -> None:
        super().__init__(samples=32)
        self.way, self.kind, self.passes = way, device, Losses()

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        options: dict[str, Any] = {"mesh": self.device_mesh["data_parallel"]}
        if self.way == "hybrid":
            size = distributed.get_world_size()
            options["mesh"] = init_device_mesh(self.kind, (2, size // 2), mesh_dim_names=("replicate", "shard"))
        if self.way == "bfloat16":
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if self.way == "offloaded":
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.kind == "cuda")
        fully_shard(self.layers[0], **options)
        fully_shard(self.layers, **options)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "bfloat16" and self.device_mesh is None:
            # What the policy does, by hand.
            cast = {name: param.to(torch.bfloat16) for name, param in self.layers.named_parameters()}
            return functional_call(self.layers, cast, x.to(torch.bfloat16)).float()
        return self.layers(x).float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.passes.values.append(loss.item())
        return loss


def options_for(device: str) -> dict[str, Any]:
    """Of the Trainer: FSDP2 over all processes of the group, if there is one."""
    accelerator = {"accelerator": {"cuda": "gpu"}.get(device, device)}
    if not distributed.is_initialized():
        return accelerator
    size = distributed.get_world_size()
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    sharded = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1, process_group_backend=backend)
    return {**accelerator, "devices": size, "strategy": sharded}


def train(
    rule: Rule, way: str, device: str = "cpu", validates: bool = True, folder: str | None = None, resume: bool = False
) -> tuple[list[Tensor], list[float]]:
    """The weights after two epochs, of which a resumed run takes the second, and the loss of every pass."""
    module = with_sam(build(Kind, way, device), rule)
    options: dict[str, Any] = {"val_check_interval": 2} if validates else {"limit_val_batches": 0}
    if folder is not None:
        options |= {"enable_checkpointing": True}
        options["callbacks"] = [ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)]
    made = trainer(max_epochs=2, **options, **options_for(device))
    seed_all(1)
    made.fit(module, ckpt_path=str(Path(folder) / "epoch=0.ckpt") if resume and folder is not None else None)
    return [param.cpu() for param in whole(module)], module.passes.values


def train_each(rules: dict[str, Rule], way: str, device: str = "cpu") -> dict[str, list[Tensor]]:
    return {name: train(rule, way, device)[0] for name, rule in rules.items()}


def train_and_resume(
    rules: dict[str, Rule], way: str, folder: str, device: str = "cpu"
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """The weights of a straight run and of a resumed one."""
    found = {}
    for name, rule in rules.items():
        place = str(Path(folder) / name)
        straight, _ = train(rule, way, device, folder=place)
        found[name] = straight, train(rule, way, device, folder=place, resume=True)[0]
    return found
