"""What all monitors have in common: the names of their keys, and a warning where a value is read too often."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_same.trainer.logging import log_now
from lightning_same.trainer.loop import callbacks_of
from lightning_same.trainer.readers import Moment, readers


class Monitor(Callback):
    """Logs values under keys of its own, and warns where another callback reads one that has not been measured again.

    Args:
        name: follows the first part of every key: ``sharpness/NAME/top_eigenvalue``. For several monitors of one kind.

    Raises:
        ValueError: if the name is not one or more of letters, digits, ``_``, ``-`` and ``.``.
    """

    keys_begin_with: ClassVar[str]
    """The first part of the keys, which no other kind of monitor has."""

    shown: ClassVar[Mapping[str, str]] = {}
    """What the progress bar shows: log keys without a name, and what they are called there."""

    def __init__(self, name: str | None) -> None:
        if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)):
            raise ValueError(
                f"{type(self).__name__}: `name` becomes a part of log keys and must consist of letters, digits, _, -"
                f" and '.', got {name!r}."
            )
        self.name = name
        self._measured_times: dict[str, int] = {}
        self._read: dict[tuple[str, str, Moment], int] = {}
        self._told: set[tuple[str, str]] = set()

    @property
    @override
    def state_key(self) -> str:
        return type(self).__qualname__ if self.name is None else f"{type(self).__qualname__}[name={self.name}]"

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measured_times.clear()
        self._read.clear()
        self._told.clear()
        for other in callbacks_of(trainer):
            alike = isinstance(other, Monitor) and other.keys_begin_with == self.keys_begin_with
            if other is not self and alike and other.name == self.name:  # type: ignore[attr-defined]
                raise ValueError(
                    f"{type(self).__name__}: two of the Trainer's callbacks would log the same keys,"
                    f" {self._named(self.keys_begin_with)}/... Give them names that differ, such as"
                    f' {type(self).__name__}(name="second").'
                )

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look_for_readers(trainer, "batch")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.training or trainer.validating:
            self._look_for_readers(trainer, "validation")

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look_for_readers(trainer, "epoch")

    def _log(
        self,
        trainer: pl.Trainer,
        values: Mapping[str, Tensor | float],
        step: int | None = None,
        prog_bar: bool = False,
    ) -> None:
        """Log values by their keys without a name."""
        named = {self._named(key): value for key, value in values.items()}
        for key in named:
            self._measured_times[key] = self._measured_times.get(key, 0) + 1
        suffix = "" if self.name is None else f" {self.name}"
        shown = {self._named(key): f"{short}{suffix}" for key, short in self.shown.items()}
        log_now(trainer, named, step=step, prog_bar=shown if prog_bar else None)

    def _named(self, key: str) -> str:
        """The key, with the monitor's name in it."""
        first, *others = key.split("/", 1)
        return "/".join([first, *([] if self.name is None else [self.name]), *others])

    def _look_for_readers(self, trainer: pl.Trainer, moment: Moment) -> None:
        """Tell, once for each reader and key, that a value is read again which has not been measured since."""
        for reader, key in readers(trainer, moment):
            if (now := self._measured_times.get(key)) is None:
                continue
            again = self._read.get((reader, key, moment)) == now
            self._read[reader, key, moment] = now
            if again and (reader, key) not in self._told:
                self._told.add((reader, key))
                rank_zero_warn(
                    f"{type(self).__name__}: {reader} reads {key!r} more often than it is measured, and takes the value"
                    " of earlier weights for a new one: patience counts it again, and a checkpoint file is kept by it"
                    " for other weights. Measure as often as it is read, such as by `every_n_epochs=1` here, or let"
                    f" {reader} read less often."
                )
