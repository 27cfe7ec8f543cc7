"""Modules that do what real ones do, on one small data set."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_same import TwoPassOptions


class Plain(pl.LightningModule):
    """The smallest classifier: no buffers, no randomness. Every rank reads its share of one fixed data set."""

    def __init__(self, lr: float = 0.1, samples: int = 48, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9, weight_decay=1e-3)

    def train_dataloader(self) -> DataLoader:
        return loader(self.hparams["samples"], self.hparams["batch_size"], self.dtype)


class Everything(pl.LightningModule):
    """Has each kind of state that a forward can change."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 12)),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(12, 10),
            nn.BatchNorm1d(10, momentum=None),
            nn.Linear(10, 3),
        )
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
        self.losses = torchmetrics.CatMetric()
        self.register_buffer("ema", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.steps_seen = 0
        self.history: list[float] = []
        self.nested: dict[str, Any] = {"lists": [[0]], "total": torch.zeros(2), "array": np.zeros(2)}
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        x.add_(0.01 * torch.rand(x.shape, generator=self.generator, dtype=x.dtype))
        noise = random.random() + float(np.random.rand())
        out = self(x)
        loss = nn.functional.cross_entropy(out, y) * (1 + 0.1 * noise)
        self.ema.lerp_(loss.detach(), 0.1)
        self.hidden = self.hidden + 1
        self.steps_seen += 1
        self.history.append(float(loss.detach()))
        self.nested["lists"][0].append(self.steps_seen)
        self.nested["total"] += loss.detach().float()
        self.nested["array"] += noise
        self.losses.update(loss.detach())
        self.accuracy(out, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"loss": loss, "noise": noise}, on_step=True, on_epoch=True, prog_bar=True)
        return {"loss": loss, "noise": torch.tensor(noise)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01 * self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def train_dataloader(self) -> DataLoader:
        return loader(48, 8, self.dtype)

    def val_dataloader(self) -> DataLoader:
        return loader(16, 8, self.dtype)


class TwoOptimizers(pl.LightningModule):
    """GAN-like: a generator and a critic, each with an optimizer, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    def critic_loss(self, x: Tensor, z: Tensor) -> Tensor:
        return self.critic(self.generator(z)).mean() - self.critic(x).mean() + (self.critic(x) ** 2).mean()

    def generator_loss(self, z: Tensor) -> Tensor:
        return -self.critic(self.generator(z)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        z = torch.randn(len(x), 2, dtype=x.dtype)
        for loss_fn, optimizer in zip(
            (lambda: self.critic_loss(x, z), lambda: self.generator_loss(z)), self.optimizers(), strict=True
        ):
            self.step(loss_fn, optimizer)

    def step(self, loss_fn: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss_fn())
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.critic.parameters(), lr=0.05, momentum=0.9),
            torch.optim.AdamW(self.generator.parameters(), lr=0.01),
        )

    def train_dataloader(self) -> DataLoader:
        return loader(48, 8, self.dtype)


def loader(samples: int, batch_size: int, dtype: torch.dtype = torch.float32) -> DataLoader:
    """One fixed data set. Global batch ``b`` is the same set of samples for every world size.

    ``batch_size`` is the global one: each of n ranks reads every n-th sample, ``batch_size / n`` at a time.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (samples,), generator=generator)
    data = TensorDataset(x, y)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    sampler = DistributedSampler(data, shuffle=False) if ranks > 1 else None
    return DataLoader(data, batch_size // ranks, sampler=sampler, shuffle=False, collate_fn=collate)


def collate(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Fresh tensors: a training step may write to its batch."""
    x, y = zip(*items, strict=True)
    return [torch.stack(x), torch.stack(y)]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def build(kind: type[pl.LightningModule], *args: Any, **kwargs: Any) -> Any:
    """A module with the same initial weights every time.

    The check of the replay on the first step is off, for passes to be counted; `tests/two_pass/test_replay_check.py`
    and the conformance matrix have it on.
    """
    seed_all(0)
    module = kind(*args, **kwargs)
    module.two_pass = TwoPassOptions(check_replay=False)
    return module


@contextmanager
def float64() -> Iterator[None]:
    """Modules built inside have float64 parameters."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
