"""The batches that a monitor measures on throughout."""

from collections.abc import Sequence
from numbers import Number
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_same.callbacks.mean_loss import Mode
from lightning_same.replay.batch import copy_of
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.rules.settings import check_int
from lightning_same.trainer.distributed import sum_over_processes
from lightning_same.trainer.precision import full_precision
from lightning_same.trainer.training_step import batch_on_device, training_loss


class ProbeBatches:
    """The first training batches, or given ones, of which every process may have another number.

    Args:
        owner: the monitor, for error messages.
        batches: how many of the first training batches, the same on all processes; or the batches of this process.

    Raises:
        ValueError: if it is neither a whole number >= 1 nor a list or tuple.
    """

    def __init__(self, owner: object, batches: int | Sequence[Any]) -> None:
        self._owner = type(owner).__name__
        if isinstance(batches, str) or not isinstance(batches, Number | Sequence):
            raise ValueError(
                f"{self._owner}: `probe_batches` must be a whole number >= 1 or a list of batches, got"
                f" {type(batches).__name__}. Take batches of a loader by `list(itertools.islice(loader, 4))`."
            )
        self._given: Sequence[Any] | None = batches if isinstance(batches, Sequence) else None
        self._number = 0 if isinstance(batches, Sequence) else check_int(owner, "probe_batches", batches, at_least=1)
        self._wanted = self._number
        self._stays = False
        self.batches: list[Any] = []

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule, mode: Mode) -> None:
        """Begin a fit.

        Raises:
            ValueError: if no process has a batch, or the processes are to take different numbers of them.
            RuntimeError: if they are given different numbers, and layers mix the samples of all processes.
        """
        self.batches, self._stays, self._wanted = [], False, self._number
        if run := trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._wanted = min(self._number, int(run))  # it is the number of batches
        count = self._number if self._given is None else len(self._given)
        numbers = torch.tensor([float(self._given is None), count, count * count, 1.0], device=module.device)
        taking, total, squares, processes = sum_over_processes(trainer, numbers).tolist()
        differ = total * total != squares * processes
        if taking not in (0, processes) or (taking and differ):
            raise ValueError(
                f"{self._owner}: a number of `probe_batches` must be the same on all processes. Lists of batches may"
                " differ."
            )
        if not total:
            raise ValueError(f"{self._owner}: `probe_batches` holds no batch.")
        if differ and mode == "train" and any(isinstance(each, nn.SyncBatchNorm) for each in module.modules()):
            raise RuntimeError(
                f"{self._owner}: the processes have different numbers of `probe_batches`, and in training mode the"
                f" SyncBatchNorm layers of {type(module).__name__} wait for all of them at every batch. Give each"
                ' process as many, or measure with mode="eval".'
            )
        if self._given is not None:
            with undisturbed(trainer, module):  # A module may augment what it moves.
                self.batches = [batch_on_device(trainer, module, batch) for batch in self._given]

    def end(self) -> None:
        """End a fit: give up what lies on the device."""
        self.batches = []

    def check_length(self, trainer: pl.Trainer) -> None:
        """Check that an epoch has as many batches.

        Raises:
            ValueError: if it has not.
        """
        if self._wanted > trainer.num_training_batches:
            raise ValueError(
                f"{self._owner}: `probe_batches` is {self._wanted}, but an epoch has only"
                f" {trainer.num_training_batches} training batches."
            )

    def take(self, batch: Any) -> None:
        """Take a training batch, if more are wanted."""
        if self._given is None and len(self.batches) < self._wanted:
            self.batches.append(copy_of(batch))

    @property
    def ready(self) -> bool:
        """Whether all batches are there, which is so on all processes at once."""
        return self._given is not None or len(self.batches) == self._wanted

    @property
    def missing(self) -> str:
        """What is still to come."""
        return f"`probe_batches` is {self._wanted}, and the epoch had only {len(self.batches)} batches with a loss"

    def have_losses(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Whether the training step returns a loss for all batches on all processes; Lightning allows None.

        Before the first measurement batches without one make room for the next ones.
        """
        without = []
        with undisturbed(trainer, module) as before:
            for batch in self.batches:
                before.restore()
                with torch.enable_grad(), full_precision(trainer, module):
                    without.append(training_loss(module, copy_of(batch), 0) is None)
        # One number where lists are given, whose lengths may differ between the processes.
        flags = without if self._given is None else [any(without)]
        summed = sum_over_processes(trainer, torch.tensor(flags, dtype=torch.float32, device=module.device))
        kept = [not count for count in summed.tolist()]
        waits = self._given is None and not self._stays
        if all(kept):
            self._stays = True
            return True
        if waits:
            self.batches = [batch for batch, keep in zip(self.batches, kept, strict=True) if keep]
        rank_zero_warn(
            f"{self._owner}: {type(module).__name__}.training_step returns None for a probe batch. "
            + ("The next training batch takes its place." if waits else "This measurement is left out.")
        )
        return False
