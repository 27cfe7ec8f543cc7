"""A training on all GPUs whose second process raises somewhere: `python failing.py PLACE STRATEGY`, under torchrun."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from gpu.machine import BACKEND, REHEARSAL
from lightning_same import GradientNormMonitor, VaSSO, replaying, with_sam


class Raises(pl.LightningModule):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))

    def configure_model(self) -> None:
        if getattr(self, "device_mesh", None) is not None:
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def raise_in(self, place: str) -> None:
        if place == self.place and self.trainer.global_step == 3 and self.global_rank == 1:
            raise KeyError(f"the reason, in {place}")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.place == "probe":
            self.raise_in("probe" if replaying() else "")
        else:
            self.raise_in("pass-two" if replaying() else "pass-one")
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.raise_in("saving")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(64, 6), torch.zeros(64, dtype=torch.long)), 4)


def main(place: str, strategy: str) -> None:
    distributed.init_process_group(BACKEND)
    size = distributed.get_world_size()
    if strategy == "ddp":
        chosen: Any = DDPStrategy(process_group_backend=BACKEND)
    else:
        chosen = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1, process_group_backend=BACKEND)
    module: Any = Raises(place)
    if place != "probe":
        module = with_sam(module, VaSSO(0.1))
    pl.Trainer(
        accelerator="cpu" if REHEARSAL else "gpu",
        devices=size,
        strategy=chosen,
        max_epochs=1,
        logger=False,
        callbacks=[GradientNormMonitor(every_n_steps=1), ModelCheckpoint(every_n_train_steps=3)],
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module)


if __name__ == "__main__":
    main(*sys.argv[1:])
