"""Checks whether a training step does the same when it is replayed."""

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_same.callbacks.cadence import Cadence
from lightning_same.callbacks.probe import LossFn, check_probe, derivatives, probe_loss, stepped
from lightning_same.replay.batch import copy_of
from lightning_same.replay.fingerprint import fingerprint
from lightning_same.replay.report import Outcome, ReplayReport, States, compare
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.trainer.distributed import sum_over_processes


class ReplayCheck(Callback):
    """Warns if a training step does not do the same when it is replayed with the same batch and weights.

    Pass two of SAM relies on that, and so do the monitors. What a training step changes in buffers, attributes, random
    numbers, metrics and the Trainer's state is put back. What it changes in the user's own objects (an environment, a
    replay buffer, a generator in a helper) or outside the module is not. This check finds it: it computes the loss and
    the gradient of the current batch twice, compares them bit for bit, and names the state that was not put back.
    Modules with `SAMMixin` check their first step by themselves.

    A check costs two forward-backward passes, three if they differ, and about two copies of the module's state to the
    host. Otherwise it leaves no trace. Non-deterministic kernels are told apart: a second replay differs as little, by
    rounding only.

    Args:
        every_n_steps: check at every n-th step, the first included. Default: the first step only.
        loss_fn: the loss of ``(module, batch)``. Default: the module's training step; a module in manual
            optimization needs one.

    Raises:
        ValueError: if ``every_n_steps`` is not a whole number >= 1.

    Attributes:
        report: of the last check; None before the first.
    """

    def __init__(self, *, every_n_steps: int | None = None, loss_fn: LossFn | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.loss_fn = loss_fn
        self.report: ReplayReport | None = None
        self._cadence = Cadence(self, every_n_steps, None, default_steps=1)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.report = None
        check_probe(pl_module, trainer, self.loss_fn, "ReplayCheck", real=False)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        is_first = self.report is None and batch_idx % trainer.accumulate_grad_batches == 0
        if is_first or (self.every_n_steps is not None and self._cadence.measures_step(trainer)):
            self.report = self._check(trainer, pl_module, batch, batch_idx)
            if self.report is not None and not self.report.is_right:
                warnings.warn(self.report.message(type(pl_module).__name__), stacklevel=2)
            elif self.report is not None and not self.report.exact:
                rank_zero_info(self.report.message(type(pl_module).__name__))

    def _check(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> ReplayReport | None:
        """The report; None if the training step returns None for the batch."""
        params = stepped(trainer, module)

        def forward_backward() -> Outcome | None:
            loss = probe_loss(trainer, module, copy_of(batch), batch_idx, self.loss_fn)
            return None if loss is None else Outcome([loss.detach()], derivatives(loss, params, module))

        fingerprints: list[Mapping[str, str]] = [fingerprint(module)]
        with undisturbed(trainer, module, in_step=True) as before:
            first = forward_backward()
            fingerprints.append(fingerprint(module))
            before.restore()
            fingerprints.append(fingerprint(module))
            replays = [forward_backward()]
            # Compared with what the first has left, which the second should leave too.
            fingerprints.append(fingerprint(module))
            # The processes decide together, also those without a loss: another replay takes part in their reductions.
            same = replays[0] is None if first is None else replays[0] is not None and first.equals(replays[0])
            differs = torch.tensor(float(not same), device=module.device)
            if sum_over_processes(trainer, differs).item():
                before.restore()
                replays.append(forward_backward())
        if first is None:
            return None
        return compare(first, [replay for replay in replays if replay is not None], States(*fingerprints))
