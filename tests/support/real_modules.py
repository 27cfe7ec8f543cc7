"""Modules that do in their training step what published ones do, beyond returning a loss."""

import copy
from collections import UserDict
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn

from support.nets import Plain


class ReassignsModule(Plain):
    """Keeps a frozen copy of its own network, as SMoG does when it resets its groups."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx % 2 == 0:
            self.teacher = copy.deepcopy(self.layers).requires_grad_(False)
        x, _ = batch
        return super().training_step(batch, batch_idx) + (self(x) - self.teacher(x)).square().mean()


class ReassignsParameter(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.average = nn.Parameter(self.layers[0].weight.detach() * 0.5, requires_grad=False)
        return super().training_step(batch, batch_idx) + (self.layers[0].weight - self.average).square().sum()


class LateBuffer(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self, "count"):
            self.register_buffer("count", torch.zeros(()))
        self.count += 1
        return super().training_step(batch, batch_idx) * (1 + 0.1 * self.count)


class LateLayer(Plain):
    """Draws random numbers when it makes a layer on its first step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(3, 3, dtype=self.dtype).requires_grad_(False)
        x, y = batch
        return nn.functional.cross_entropy(self.late(self(x)), y)


class ReadsMetrics(Plain):
    """A curriculum by the last loss that was logged."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        metrics = (self.trainer.callback_metrics, self.trainer.logged_metrics, self.trainer.progress_bar_metrics)
        known = [float(values.get("train_loss", 1.0)) for values in metrics]
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss * sum(known)


class ReadsBack(Plain):
    """Weighs its loss by what it has logged a moment before: a value, a mean over processes, a metric's value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss_now", loss)
        self.log("synced", loss.detach(), on_step=True, on_epoch=True, sync_dist=True)
        self.mean(loss.detach())
        self.log_dict({"mean": self.mean}, on_step=True, on_epoch=True)
        known = [self.trainer.callback_metrics[key] for key in ("loss_now", "synced", "mean_step")]
        return loss * (1 + sum(known))


class WritesWeights(Plain):
    """Normalizes its prototypes at the start of each step, as SwAV does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.layers[2].weight.copy_(nn.functional.normalize(self.layers[2].weight, dim=1))
        return super().training_step(batch, batch_idx)


class ReplacesWeightData(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.layers[2].weight.data = self.layers[2].weight.data * 0.9
        return super().training_step(batch, batch_idx)


class WritesWeightData(Plain):
    """Through ``.data``, which no version counter sees."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.layers[2].weight.data.mul_(0.9)
        return super().training_step(batch, batch_idx)


class ReadsProgress(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        place = self.trainer.fit_loop.epoch_loop.batch_idx + 10 * self.trainer.is_last_batch
        return super().training_step(batch, batch_idx) * (1 + 0.1 * place)


class StopsByLoss(Plain):
    """Stops training once a loss is large, which the one at w + e may be."""

    limit = 10.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if loss > self.limit:
            self.trainer.should_stop = True
        return loss


class TogglesFreezing(Plain):
    """Freezes its last layer for its first epoch inside the step, as SwAV freezes its prototypes."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.layers[2].weight.requires_grad_(self.current_epoch > 0)
        return super().training_step(batch, batch_idx)


class UnfreezesAndWrites(Plain):
    """Normalizes its last layer, and trains it from the second epoch on, both inside the step, as SwAV does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        last = self.layers[2].weight
        with torch.no_grad():
            last.copy_(last / last.norm(dim=1, keepdim=True))
        last.requires_grad_(self.current_epoch > 0)
        return super().training_step(batch, batch_idx)


class ScalesGradients(Plain):
    """Halves all gradients gathered so far after each backward."""

    def on_after_backward(self) -> None:
        for param in self.parameters():
            if param.grad is not None:
                param.grad.mul_(0.5)


class ReturnsMapping(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return UserDict(loss=super().training_step(batch, batch_idx))


class TakesGradient(Plain):
    """A gradient penalty on the input."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x.requires_grad_()
        loss = nn.functional.cross_entropy(self(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + slope.square().sum()


class MakesTensor(Plain):
    """Makes a tensor of the default dtype, which the precision plugin sets."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x) @ torch.eye(3), y)


REAL = [
    ReassignsModule,
    ReassignsParameter,
    LateBuffer,
    LateLayer,
    ReadsMetrics,
    ReadsBack,
    WritesWeights,
    ReplacesWeightData,
    WritesWeightData,
    ReadsProgress,
    StopsByLoss,
    TogglesFreezing,
    UnfreezesAndWrites,
    ScalesGradients,
    ReturnsMapping,
    TakesGradient,
]
