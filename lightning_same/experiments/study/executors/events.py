"""What an executor is, and what it reports."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

from lightning_same.experiments.study.plan import Run

Perform = Callable[[Run, Path, int, Callable[[int], None]], None]
"""Performs a run: takes it, the directory of all runs, the number of threads, and what to call after each epoch."""

LOOK = 0.2
"""Seconds between looks at whether a run has news and whether the study shall stop."""


class Event(NamedTuple):
    """What has happened to a run.

    Attributes:
        kind: ``started``, ``epoch``, ``again`` (it was lost with its process or node, and is begun anew), ``done``,
            ``failed``, or ``full``, if the disk is.
        run: the run.
        value: for ``started`` the name of the node, empty on this machine; for ``epoch`` the number of finished epochs;
            for the others the reason in one line; None for ``done``.
    """

    kind: Literal["started", "epoch", "again", "done", "failed", "full"]
    run: Run
    value: Any


class Executor(Protocol):
    """Performs runs within its ``with`` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def check(self, runs: Sequence[Run], directory: Path, threads: int) -> list[str]:
        """See whether the runs can be performed, before the first one is.

        Args:
            runs: those that are left.
            directory: the directory of all runs.
            threads: PyTorch threads of each.

        Returns:
            What has to be known, a line each.

        Raises:
            StudyError: says in one line why they cannot.
        """
        ...

    def run_all(
        self, runs: Sequence[Run], directory: Path, threads: int, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Event, None, None]:
        """Perform the runs and yield what happens. To close the generator ends those that are not finished.

        Args:
            runs: in the order in which they are begun.
            directory: the directory of all runs.
            threads: PyTorch threads of each.
            stopped: asked a few times a second; once it says so, no further run is begun, and those that are not
                finished end.
        """
        ...

    def end(self) -> None:
        """End everything at once; called from the handler of a signal, just before this process ends."""
        ...
