"""When a monitor measures."""

import lightning.pytorch as pl

from lightning_same.rules.settings import check_int
from lightning_same.trainer.loop import steps_logged


class Cadence:
    """Every n-th step, or once in every n-th epoch.

    A step is a batch that ends in a step of the optimizer, as Lightning counts for its own logging: one, however many
    optimizers step in it.

    Args:
        owner: the monitor, for error messages.
        every_n_steps: measure at every n-th step, the first included.
        every_n_epochs: measure once in every n-th epoch instead.
        default_steps: ``every_n_steps`` if neither is given. Default: the Trainer's ``log_every_n_steps``.

    Raises:
        ValueError: if an argument is not a whole number >= 1, or both are given.
    """

    def __init__(
        self,
        owner: object,
        every_n_steps: int | None,
        every_n_epochs: int | None,
        default_steps: int | None = None,
    ) -> None:
        for name, number in {"every_n_steps": every_n_steps, "every_n_epochs": every_n_epochs}.items():
            if number is not None:
                check_int(owner, name, number, at_least=1)
        if every_n_steps is not None and every_n_epochs is not None:
            raise ValueError(
                f"{type(owner).__name__}: give either `every_n_steps` or `every_n_epochs`, not both; got"
                f" {every_n_steps} and {every_n_epochs}."
            )
        self.every_n_steps = every_n_steps if every_n_steps or every_n_epochs else default_steps
        self.every_n_epochs = every_n_epochs

    def period(self, trainer: pl.Trainer) -> int:
        """The number of steps from one measurement to the next; 0 for never."""
        return self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]

    def measures_step(self, trainer: pl.Trainer) -> bool:
        """Whether the current step is measured; with ``every_n_epochs`` the first step of the epoch is."""
        if self.every_n_epochs is not None:
            first = trainer.fit_loop.epoch_loop.batch_idx < trainer.accumulate_grad_batches
            return first and trainer.current_epoch % self.every_n_epochs == 0
        return self.period(trainer) > 0 and steps_logged(trainer) % self.period(trainer) == 0

    def measures_epoch_end(self, trainer: pl.Trainer) -> bool:
        """Whether the end of the current epoch is measured."""
        return self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def is_overdue(self, trainer: pl.Trainer, last_step: int | None) -> bool:
        """Whether a step to be measured has come since ``last_step``, which was the last; None if none was."""
        if self.every_n_epochs is not None:
            return False
        period = self.period(trainer)
        return last_step is None or steps_logged(trainer) // period > last_step // period
