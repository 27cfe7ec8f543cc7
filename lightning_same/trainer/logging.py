"""Logging at once, instead of at the end of a batch or an epoch."""

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_same.trainer.loop import steps_logged


def log_now(
    trainer: pl.Trainer,
    values: Mapping[str, Tensor | float],
    *,
    step: int | None = None,
    to_loggers: bool = True,
    prog_bar: Mapping[str, str] | None = None,
) -> None:
    """Log values that hold for one step.

    ``LightningModule.log`` would write the same values again at every step until the epoch ends. Values are there for
    ModelCheckpoint and EarlyStopping on every process; rank zero writes them to the loggers. The host waits for the
    device once, and only if somebody reads the values.

    Args:
        trainer: the Trainer.
        values: by their keys; a tensor is a scalar.
        step: under which they are logged. Default: Lightning's own.
        to_loggers: whether the loggers get them too.
        prog_bar: the keys that the progress bar shows, with the names that they have there.
    """
    tensors = {key: value if isinstance(value, Tensor) else torch.tensor(value) for key, value in values.items()}
    trainer.callback_metrics.update(tensors)
    loggers = trainer.loggers if to_loggers else []
    if not (tensors and trainer.is_global_zero and (loggers or prog_bar)):
        return
    row = _floats(tensors)
    for logger in loggers:
        logger.log_metrics(row, step=steps_logged(trainer) if step is None else step)
    if prog_bar:
        trainer.progress_bar_metrics.update({prog_bar[key]: row[key] for key in prog_bar if key in row})


def logs_this_step(trainer: pl.Trainer) -> bool:
    """Whether Lightning writes to the loggers at this step, by ``log_every_n_steps``."""
    return trainer._logger_connector.should_update_logs  # seen in Lightning 2.5.1 to 2.6.6


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The values on the host, after one wait for the device and not one for each."""
    device = next(iter(values.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return dict(zip(values, torch.stack([value.to(device, dtype) for value in values.values()]).tolist(), strict=True))
