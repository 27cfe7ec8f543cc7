"""What goes into a training step, and what it returns."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor


def check_loss(loss: Any, source: str) -> Tensor:
    """The loss, if it is a scalar tensor.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it has more than one element.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"{source} must return a scalar loss tensor, got {loss!r}.")
    if loss.numel() != 1:
        raise ValueError(f"{source} must return a scalar loss, got shape {tuple(loss.shape)}; reduce it by `.mean()`.")
    return loss


def training_loss(module: pl.LightningModule, batch: Any, batch_idx: int) -> Any:
    """The loss that a module's training step returns for a batch."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    output = module.training_step(batch, batch_idx) if takes_index else module.training_step(batch)
    return output["loss"] if isinstance(output, dict) else output


def batch_on_device(trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> Any:
    """A batch of a data loader, as the training loop hands it to a training step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)  # seen in Lightning 2.5.1 to 2.6.6
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
