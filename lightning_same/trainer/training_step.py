"""What goes into a training step, and what it returns."""

from collections.abc import Mapping
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
    return loss_in(output, f"{type(module).__name__}.training_step")


def loss_in(output: Any, source: str) -> Any:
    """The loss in what a training step has returned: the tensor itself, or the value of ``"loss"``.

    Raises:
        TypeError: if a mapping has no ``"loss"``; names ``source``.
    """
    if not isinstance(output, Mapping):
        return output
    if "loss" not in output:
        raise TypeError(f"{source} must return the loss, or a mapping with the key 'loss'; got keys {list(output)}.")
    return output["loss"]


def batch_on_device(trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> Any:
    """A batch of a data loader, as the training loop hands it to a training step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)  # seen in Lightning 2.5.1 to 2.6.6
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
