"""What happens on the machines of a Ray cluster. Nothing here imports Ray, so that it can be called without."""

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_same.cli.errors import one_line
from lightning_same.experiments.study.environment import differences, versions
from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.executors.attempt import attempt, log_of
from lightning_same.experiments.study.executors.events import Perform
from lightning_same.experiments.study.plan import Run


@dataclass(frozen=True)
class Job:
    """What all runs of a study have in common.

    Attributes:
        directory: the directory of all runs on the machine of the command.
        token: a file in it or beside it and what it holds: whoever reads that there shares the directory. None as long
            as there is no directory.
        threads: PyTorch threads of a run.
        versions: those of the command's machine.
        cwd: the directory in which the command was given; None if Ray brings one.
        path: where the command finds modules.
        perform: performs a run.
    """

    directory: Path
    token: tuple[Path, str] | None
    threads: int
    versions: dict[str, str]
    cwd: str | None
    path: tuple[str, ...]
    perform: Perform

    def settle(self) -> None:
        """Find relative files and the user's modules as the command does, where they are on this machine too."""
        if self.cwd is not None and Path(self.cwd).is_dir():
            os.chdir(self.cwd)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        sys.path.extend(path for path in self.path if path not in sys.path and Path(path).exists())
        importlib.invalidate_caches()

    def shared(self) -> bool:
        """Whether this machine sees the directory of the results."""
        if self.token is None:
            return False
        path, content = self.token
        try:
            return path.read_text(encoding="utf-8") == content
        except OSError:
            return False


class Answer(NamedTuple):
    """How a task has ended.

    Attributes:
        kind: as of `attempt`, or ``unfit``: this machine must not perform runs.
        why: in one line.
        node: the name of the machine.
        packed: the finished run, where the directory is not shared.
        log: its output, where it has failed and the directory is not shared.
    """

    kind: Literal["done", "failed", "full", "busy", "unfit"]
    why: str
    node: str
    packed: bytes | None = None
    log: bytes | None = None


def perform(job: Job, run: Run, tell: Callable[[int], None]) -> Answer:
    """Perform a run on this machine."""
    node = socket.gethostname()
    job.settle()
    unlike = differences(versions(), job.versions)
    if unlike:
        return Answer("unfit", f"{node} has {', '.join(unlike)}", node)
    if job.shared():
        kind, why = attempt(run, job.directory, job.threads, tell, job.perform)
        return Answer(kind, why, node)
    from lightning_same.experiments.study.executors.landing import pack

    with tempfile.TemporaryDirectory(prefix="lightning-same-") as name:
        here = Path(name)
        kind, why = attempt(run, here, job.threads, tell, job.perform)
        if kind == "done":
            return Answer(kind, why, node, packed=pack(run, here, job.directory))
        why = why.replace(str(log_of(run, here)), str(log_of(run, job.directory)))
        if kind == "full":  # that of this machine: the others go on
            kind, why = "failed", f"No space is left on the disk of {node}: {why}"
        return Answer(kind, why, node, log=log_of(run, here).read_bytes()[-(2**20) :])


class Found(NamedTuple):
    """What a machine says when it is asked whether it can perform runs.

    Attributes:
        unlike: the versions in which it differs, in words.
        wrong: what keeps its runs from being built or their data from being there; empty if nothing.
        shared: whether it shares the directory of the results.
    """

    unlike: list[str]
    wrong: str
    shared: bool


def look(job: Job, runs: Sequence[Run]) -> Found:
    """See whether this machine can perform runs like these; fetches data that are missing."""
    job.settle()
    unlike = differences(versions(), job.versions)
    wrong = ""
    if not unlike:
        from lightning_same.experiments.study.check import check_built

        try:
            check_built(runs)
        except StudyError as error:
            wrong = one_line(error)
    return Found(unlike, wrong, job.shared())
