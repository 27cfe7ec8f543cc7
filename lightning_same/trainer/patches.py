"""Where this package takes a place in the Trainer that Lightning offers no hook for.

Each was seen to work in Lightning 2.5.1 to 2.6.6; ``tests/trainer`` names them.
"""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_same.trainer.loop import callbacks_of

TrainingStep = Callable[..., Any]

set_trainer = vars(pl.LightningModule)["trainer"].fset
"""What ``module.trainer = ...`` does in Lightning, which a property that overrides it cannot reach by ``super()``."""


def replace_training_step(trainer: pl.Trainer, training_step: TrainingStep) -> TrainingStep:
    """Let training steps go through a function, until `restore_training_step`.

    On the strategy, since the automatic and the manual loop, compiled modules and wrappers all call it there.

    Returns:
        The strategy's own.
    """
    own: TrainingStep = trainer.strategy.training_step
    trainer.strategy.training_step = training_step  # type: ignore[method-assign]
    return own


def restore_training_step(trainer: pl.Trainer, own: TrainingStep) -> None:
    """Give the strategy back what `replace_training_step` has returned."""
    if own == getattr(type(trainer.strategy), "training_step", None).__get__(trainer.strategy):  # type: ignore[union-attr]
        vars(trainer.strategy).pop("training_step", None)
    else:  # Somebody else's, which was there before.
        trainer.strategy.training_step = own  # type: ignore[method-assign]


def put_first(trainer: pl.Trainer, kind: type[Callback]) -> None:
    """Make a callback of this kind the first of the Trainer's; an instance is made if there is none."""
    callbacks = callbacks_of(trainer)
    first = next((callback for callback in callbacks if isinstance(callback, kind)), None) or kind()
    callbacks[:] = [first, *(callback for callback in callbacks if callback is not first)]
