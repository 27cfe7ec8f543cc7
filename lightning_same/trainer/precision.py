"""What mixed precision does to the loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer


def loss_scale(trainer: pl.Trainer, device: torch.device) -> Tensor | None:
    """What the loss scaler multiplies the loss by, on the device; None without one. Nothing waits for the device."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale


def scale_before_step(trainer: pl.Trainer, optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """What the scaler has left on the gradients when the hooks before an optimizer step run.

    A fused optimizer unscales within its step, for all others the scaler has done so before; for them it is None.
    """
    unscales_by_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
    return loss_scale(trainer, device) if unscales_by_itself else None


@contextmanager
def full_precision(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The precision plugin's context of a training step, without autocast: new tensors get the dtype of the weights."""
    with (
        trainer.precision_plugin.train_step_context(),
        torch.autocast(module.device.type, enabled=False),
    ):
        yield
