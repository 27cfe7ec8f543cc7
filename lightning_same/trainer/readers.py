"""Who reads logged values, and when: EarlyStopping, ModelCheckpoint, and schedulers such as ReduceLROnPlateau.

The attributes that begin with an underscore are Lightning's own, seen in 2.5.1 to 2.6.6; ``tests/trainer`` names them.
"""

from collections.abc import Iterator
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_same.trainer.loop import callbacks_of

Moment = Literal["batch", "validation", "epoch"]
"""The end of a training batch, of a validation run, or of a training epoch."""


def readers(trainer: pl.Trainer, moment: Moment) -> Iterator[tuple[str, str]]:
    """Who reads a value at this moment: the name of its class, and the key."""
    for callback in callbacks_of(trainer):
        key = getattr(callback, "monitor", None)
        if isinstance(key, str) and _reads(trainer, callback, moment):
            yield type(callback).__name__, key
    for config in trainer.lr_scheduler_configs:
        at = "epoch" if config.interval == "epoch" else "batch"
        done = trainer.current_epoch if at == "epoch" else trainer.fit_loop.epoch_loop.batch_idx
        if config.reduce_on_plateau and config.monitor and at == moment and (done + 1) % config.frequency == 0:
            yield type(config.scheduler).__name__, config.monitor


def _reads(trainer: pl.Trainer, callback: Any, moment: Moment) -> bool:
    """Whether a callback reads at this moment. Of callbacks that are not known, nothing is known."""
    if isinstance(callback, EarlyStopping):
        return moment == ("epoch" if callback._check_on_train_epoch_end else "validation")
    if not isinstance(callback, ModelCheckpoint):
        return False
    if moment == "batch":
        steps = callback._every_n_train_steps
        return steps > 0 and trainer.global_step % steps == 0
    epochs = callback._every_n_epochs
    own = "epoch" if callback._should_save_on_train_epoch_end(trainer) else "validation"
    return moment == own and epochs > 0 and (trainer.current_epoch + 1) % epochs == 0
