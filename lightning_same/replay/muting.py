"""Nothing that a repeated forward writes to a logger is seen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger


@contextmanager
def muted_loggers(trainer: pl.Trainer) -> Iterator[None]:
    """The Trainer's loggers are as many that write nothing."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def muted(module: pl.LightningModule) -> Iterator[None]:
    """Nothing that the module logs or prints is seen."""
    names = ("log", "print")
    hidden = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        for name in names:
            object.__setattr__(module, name, _nothing)
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(hidden)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
