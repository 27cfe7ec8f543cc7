"""Nothing that a repeated forward logs or prints is seen."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from typing_extensions import override

from lightning_same.trainer.logging import log_in_replay


@contextmanager
def muted(trainer: pl.Trainer, module: pl.LightningModule, *, in_step: bool = False) -> Iterator[None]:
    """The module's `print` does nothing, its `log` reaches no logger, whose stand-ins write nothing.

    Args:
        trainer: the module's Trainer.
        module: the module.
        in_step: whether all processes repeat the step that they are in, so that `log` may reduce over them.
    """
    stand_ins = {"log": log_in_replay(module, synchronizes=in_step), "print": _nothing}
    hidden = {name: vars(module)[name] for name in stand_ins if name in vars(module)}
    loggers = trainer.loggers
    trainer.loggers = [muted_logger(logger) for logger in loggers]
    try:
        vars(module).update(stand_ins)
        yield
    finally:
        for name in stand_ins:
            vars(module).pop(name, None)
        vars(module).update(hidden)
        trainer.loggers = loggers


def muted_logger(logger: Logger) -> Logger:
    """A stand-in for a logger: of its type, with its attributes such as ``log_dir``, and writing nothing."""
    if isinstance(logger, _Muted):  # A monitor may measure while another does.
        return logger
    kind = _muted_kind(type(logger))
    if kind is None:
        return DummyLogger()
    stand_in: Logger = object.__new__(kind)
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
def _muted_kind(kind: type[Logger]) -> type[Logger] | None:
    """A subclass whose methods to log do nothing, also those that a kind of logger adds, such as ``log_image``.

    None for what only behaves like a logger, as the mocks in a user's tests do.
    """
    if not issubclass(kind, Logger):
        return None
    namespace: dict[str, Any] = {"__module__": __name__}
    for name in dir(kind):
        if name.startswith("log") and inspect.isfunction(getattr(kind, name)):
            namespace[name] = _nothing
    # Not by the same name: the command line finds loggers by theirs.
    return type(f"_Muted{kind.__name__}", (_Muted, kind), namespace)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
