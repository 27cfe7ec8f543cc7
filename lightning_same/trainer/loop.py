"""Where the Trainer is in its training loop.

The attributes that begin with an underscore are Lightning's own, seen in 2.5.1 to 2.6.6; ``tests/trainer`` names them.
"""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """The Trainer's own list of its callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether the current batch adds to the gradients without a step of the optimizer."""
    return trainer.fit_loop._should_accumulate()


def steps_logged(trainer: pl.Trainer) -> int:
    """Batches that have ended in an optimizer step: the step under which Lightning logs."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def skips_backward(trainer: pl.Trainer) -> bool:
    """Whether training steps run for their forward only, as StochasticWeightAveraging's do to update BatchNorm."""
    return trainer.fit_loop._skip_backward


def opens_window(trainer: pl.Trainer) -> bool:
    """Whether the current batch is the first of an accumulation window."""
    return trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches == 0


def batches_seen(trainer: pl.Trainer) -> int:
    """Training batches before the current one, over all epochs."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def batches_ended(trainer: pl.Trainer) -> int:
    """Training batches that have ended, over all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed
