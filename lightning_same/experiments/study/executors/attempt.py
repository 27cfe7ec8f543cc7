"""One attempt at a run, in a process that has nothing else to do: its output goes to a log, its error to one line."""

import gc
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lightning_same.experiments.study.errors import Kind
from lightning_same.experiments.study.executors.events import Perform
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.writing import output_to

Ended = tuple[Literal["done"] | Kind, str]
"""How an attempt has ended, and why."""


def log_of(run: Run, directory: Path) -> Path:
    """Where the output of a run goes while it is not finished."""
    return directory / f"{run.name}.log"


def attempt(run: Run, directory: Path, threads: int, tell: Callable[[int], None], perform: Perform) -> Ended:
    """Perform a run.

    Args:
        run: the run.
        directory: the directory of all runs.
        threads: PyTorch threads.
        tell: called with the number of epochs that are finished.
        perform: performs it.
    """
    log = log_of(run, directory)
    ended: Ended = "done", ""
    try:
        with output_to(log):
            try:
                perform(run, directory, threads, tell)
            except BaseException:
                traceback.print_exc()
                raise
    except BaseException as error:  # also SystemExit, by which a parser refuses
        kind, said = _why(error, directory)
        ended = kind, f"{said} (see {log})"
    else:
        log.unlink(missing_ok=True)
    gc.collect()  # a Trainer is full of cycles, and may hold the accelerator's memory
    return ended


def _why(error: BaseException, directory: Path) -> tuple[Kind, str]:
    from lightning_same.experiments.study.own_process import RunEnded
    from lightning_same.experiments.study.run import why

    return (error.kind, error.why) if isinstance(error, RunEnded) else why(error, directory)
