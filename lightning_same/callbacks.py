"""When to measure and what to log."""

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_same.checkpoints import CKPTS, CheckpointFractions, checkpoint_fractions
from lightning_same.gradients import TwoGradients
from lightning_same.parts import finite
from lightning_same.probe import LossFn, refuse_probe, two_gradients
from lightning_same.rule import Rule


class CheckpointFractionMonitor(Callback):
    """Logs which share of the gradient's elements lies in each of the four checkpoints.

    On a module that trains by a two-pass rule it reads the two gradients of the step: no pass of its own, and nothing
    waits for the accelerator; steps without a second pass log nothing. On any other module it takes them itself from
    the current batch, by two passes that leave no trace: training is bit for bit what it is without the callback. Under
    DDP the gradients are averaged over the processes first, so every rank holds the same value.

    Logged, each between 0 and 1, together 1:
        ``ckpt_fraction/ckpt1`` to ``ckpt_fraction/ckpt4``, ``ckpt_fraction/rest``. The rest can be large: an inactive
        ReLU has g = s = 0.

    Args:
        every_n_steps: measure, and log, at every n-th optimizer step, the first included. Default: the Trainer's
            ``log_every_n_steps``.
        prog_bar: show the four shares in the progress bar too, as ``ckpt1`` to ``ckpt4``.
        rho: radius of the perturbation where the callback takes the gradients itself.
        loss_fn: gives the loss of ``(module, batch)`` there. Default: the module's training step; a module in manual
            optimization needs one.

    Raises:
        ValueError: if ``every_n_steps`` is not a whole number >= 1, or ``rho`` is not a number > 0.
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        prog_bar: bool = False,
        rho: float = 0.05,
        loss_fn: LossFn | None = None,
    ) -> None:
        whole = isinstance(every_n_steps, int) and not isinstance(every_n_steps, bool)
        if every_n_steps is not None and not (whole and every_n_steps >= 1):
            raise ValueError(
                f"CheckpointFractionMonitor: `every_n_steps` must be a whole number >= 1, got {every_n_steps!r}."
            )
        if not (finite(rho) and rho > 0):
            raise ValueError(f"CheckpointFractionMonitor: `rho` must be a finite number > 0, got {rho!r}.")
        self.every_n_steps = every_n_steps
        self.prog_bar = prog_bar
        self.rho = rho
        self.loss_fn = loss_fn
        self._fractions: CheckpointFractions | None = None

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not _trains_by_a_rule(pl_module):
            refuse_probe(pl_module, trainer, self.loss_fn, "CheckpointFractionMonitor")

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        first_of_window = batch_idx % trainer.accumulate_grad_batches == 0
        if first_of_window and self.wants_two_pass_gradients(trainer) and not _trains_by_a_rule(pl_module):
            found = two_gradients(trainer, pl_module, batch, batch_idx, self.rho, self.loss_fn)
            self._fractions = None if found is None else checkpoint_fractions(found.grads, found.perturbed_grads)

    def wants_two_pass_gradients(self, trainer: pl.Trainer) -> bool:
        """Whether this step is measured."""
        every: int = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and trainer.global_step % every == 0

    def on_two_pass_gradients(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, gradients: TwoGradients
    ) -> None:
        """Called by a two-pass step when both gradients are known.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            gradients: g and s.
        """
        self._fractions = checkpoint_fractions(gradients.grads, gradients.perturbed_grads)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._fractions is None:
            return
        fractions = {f"ckpt_fraction/{name}": value for name, value in self._fractions._asdict().items()}
        # Not by `self.log`, which would write the same values again at every step until the epoch ends.
        trainer.callback_metrics.update(fractions)
        if trainer.is_global_zero and (trainer.loggers or self.prog_bar):
            row = convert_tensors_to_scalars(fractions)
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            if self.prog_bar:
                trainer.progress_bar_metrics.update({f"ckpt{k}": row[f"ckpt_fraction/ckpt{k}"] for k in CKPTS})
        self._fractions = None


def _trains_by_a_rule(module: pl.LightningModule) -> bool:
    return isinstance(getattr(module, "sam", None), Rule)
