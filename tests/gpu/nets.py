"""Modules with what a GPU draws or keeps in its own way; each notes the loss of every pass."""

from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from support.nets import build
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_same import Rule, TwoPassOptions, with_sam


class Losses:
    """Of all passes, on the device. No list of the module's own, which would be put back after pass two."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def pairs(self) -> list[tuple[float, float]]:
        """Of each step, if all take two passes."""
        found = [value.item() for value in self.values]
        return list(zip(found[::2], found[1::2], strict=True))


class Noted(pl.LightningModule):
    """A classifier of images; batches of 8 from a fixed set."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 5))
        self.seen = Losses()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]).float(), batch[1])
        self.seen.values.append(loss.detach().clone())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def train_dataloader(self) -> DataLoader:
        draws = torch.Generator().manual_seed(0)
        x, y = torch.randn(48, 3, 8, 8, generator=draws), torch.randint(0, 5, (48,), generator=draws)
        return DataLoader(TensorDataset(x, y), batch_size=8)


class Convolutional(Noted):
    """BatchNorm, spectral norm, dropout, a buffer that the forward writes to, and a metric."""

    def __init__(self) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.layers = nn.Sequential(
            normed, nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(288, 5)
        )
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(5, average="micro")
        self.register_buffer("calls", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        self.accuracy(self(batch[0]).detach(), batch[1])
        return super().training_step(batch, batch_idx)


class WithDropout(Noted):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 5))


class CompiledDropout(WithDropout):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.compile(self.layers)


class Recurrent(Noted):
    """cuDNN draws the dropout between the layers from a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.layers = nn.LSTM(24, 16, num_layers=3, dropout=0.3, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.lstm(x.flatten(2).reshape(len(x), 8, 24))[0][:, -1])


class Attentive(Noted):
    """The dropout of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.layers = nn.Linear(24, 96), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(len(x), 8, 24)).view(len(x), 8, 3, 2, 16).permute(2, 0, 3, 1, 4)
        dropout = 0.2 if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.layers(mixed.transpose(1, 2).flatten(2).mean(1))


def made(kind: type[Noted], rule: Rule | None, **options: Any) -> Any:
    """A module with the same weights each time."""
    module = build(kind)
    if rule is None:
        return module
    mixed = with_sam(module, rule)
    mixed.two_pass = TwoPassOptions(**{"check_replay": False, **options})
    return mixed
