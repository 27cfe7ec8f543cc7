"""Logging at once, and what `self.log` does in a training step that is repeated."""

from collections.abc import Callable, Mapping
from typing import Any

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


def log_in_replay(module: pl.LightningModule, *, synchronizes: bool) -> Callable[..., None]:
    """What takes the place of ``module.log`` while a training step is repeated.

    A training step may read back what it has just logged, such as ``trainer.callback_metrics["loss"]``. So values are
    logged as in the step itself, and `TrainerState` takes them away again. Outside of training nothing is logged.

    Args:
        module: the module.
        synchronizes: whether ``sync_dist`` is obeyed, for which every process has to run the same steps.
    """

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        trainer = module.trainer
        if not trainer.training or trainer.sanity_checking:
            return
        if not synchronizes and "sync_dist" in kwargs:
            kwargs["sync_dist"] = False
        hook = module._current_fx_name  # seen in Lightning 2.5.1 to 2.6.6
        module._current_fx_name = "training_step"
        try:
            # Not an override of the module's own, which may write somewhere else too.
            pl.LightningModule.log(module, name, value, *args, **kwargs)
        finally:
            module._current_fx_name = hook

    return log


def logs_this_step(trainer: pl.Trainer) -> bool:
    """Whether Lightning writes to the loggers at this step, by ``log_every_n_steps``."""
    return trainer._logger_connector.should_update_logs  # seen in Lightning 2.5.1 to 2.6.6


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The values on the host, after one wait for the device and not one for each."""
    device = next(iter(values.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return dict(zip(values, torch.stack([value.to(device, dtype) for value in values.values()]).tolist(), strict=True))
