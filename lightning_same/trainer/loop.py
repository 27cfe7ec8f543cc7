"""Where the Trainer is in its training loop."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """The Trainer's own list of its callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]
