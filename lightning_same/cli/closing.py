"""What a fit on the command line says when it has ended: last and best told apart, and where the curves are."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say_last(trainer: pl.Trainer) -> None:
    """Print the checkpoint callback's metric as the last epoch left it: what the progress bar shows, not the best."""
    keeper = trainer.checkpoint_callback
    monitor = getattr(keeper, "monitor", None)
    if monitor in trainer.callback_metrics:
        last = _values({monitor: trainer.callback_metrics[monitor]})
        _print(f"Last weights, {_after(trainer.current_epoch)}: {last}")


@rank_zero_only
def say_tested(trainer: pl.Trainer, results: Sequence[Mapping[str, float]]) -> None:
    """Print what the test loop has measured, to four digits, and on which weights."""
    values = ", ".join(_values(result) for result in results if result)
    _print(f"{_which(trainer)}: {values}" if values else f"{_which(trainer)}: the test loop has logged nothing")


@rank_zero_only
def say_where(trainer: pl.Trainer) -> None:
    """Print where the best checkpoint file and the curves are, and the command that draws them."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best:
        _print(f"Checkpoint file: {_short(best)}")
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger | TensorBoardLogger) and Path(logger.log_dir).is_dir():
            _print(f"Curves: {_short(logger.log_dir)}. To draw them: lightning-same plot {_short(logger.log_dir)}")
            return


def _which(trainer: pl.Trainer) -> str:
    keeper = trainer.checkpoint_callback
    if not (isinstance(keeper, ModelCheckpoint) and keeper.best_model_path):
        return "Test of the last weights"
    # File names count epochs from 0.
    epoch = re.search(r"epoch=(\d+)", Path(keeper.best_model_path).name)
    at = f", {_after(int(epoch[1]) + 1)}" if epoch else ""
    if keeper.monitor is None or keeper.best_model_score is None:
        return f"Test of the newest checkpoint{at}"
    order = "highest" if keeper.mode == "max" else "lowest"
    return f"Test of the best weights{at} ({order} {_values({keeper.monitor: keeper.best_model_score})})"


def _after(epochs: int) -> str:
    return f"after {epochs} epoch{'s' if epochs > 1 else ''}"


def _values(metrics: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())  # type: ignore[arg-type]


def _short(path: str) -> str:
    """A path as it is typed where the command was given."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
