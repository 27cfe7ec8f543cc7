"""Nothing that a repeated forward logs or prints is seen."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from typing_extensions import override


@contextmanager
def muted(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The module's `log` and `print` do nothing, and the Trainer's loggers are stand-ins that write nothing."""
    names = ("log", "print")
    hidden = {name: vars(module)[name] for name in names if name in vars(module)}
    loggers = trainer.loggers
    trainer.loggers = [muted_logger(logger) for logger in loggers]
    try:
        for name in names:
            vars(module)[name] = _nothing
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(hidden)
        trainer.loggers = loggers


def muted_logger(logger: Logger) -> Logger:
    """A stand-in for a logger: of its type, with its attributes such as ``log_dir``, and writing nothing."""
    stand_in: Logger = object.__new__(_muted_kind(type(logger)))
    # The same dictionary: a version that is counted at its first use is the logger's too.
    object.__setattr__(stand_in, "__dict__", vars(logger))
    return stand_in


class _Muted(Logger):
    """What a stand-in does in place of its logger."""

    @property
    def experiment(self) -> Any:
        """Accepts every call and does nothing."""
        return DummyLogger().experiment

    @override
    def save(self) -> None:
        pass

    @override
    def finalize(self, status: str) -> None:
        pass

    @override
    def after_save_checkpoint(self, *args: Any) -> None:
        pass


@lru_cache(maxsize=64)
def _muted_kind(kind: type[Logger]) -> type[Logger]:
    """A subclass whose methods to log do nothing, also those that a kind of logger adds, such as ``log_image``."""
    namespace: dict[str, Any] = {"__module__": __name__}
    for name in dir(kind):
        if name.startswith("log") and inspect.isfunction(getattr(kind, name)):
            namespace[name] = _nothing
    # Not by the same name: the command line finds loggers by theirs.
    return type(f"_Muted{kind.__name__}", (_Muted, kind), namespace)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
