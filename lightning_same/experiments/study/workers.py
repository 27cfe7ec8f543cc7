"""Runs in parallel: a few processes, each of which trains one run after the other.

Starting Python and importing Lightning takes longer than a small run does, so a process is kept. Each run seeds
everything anew, so that its result does not depend on what the process did before.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lightning_same.cli.errors import one_line
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.writing import output_to

_CONTEXT = multiprocessing.get_context("spawn")  # a forked PyTorch hangs in its thread pools


class Event(NamedTuple):
    """What a worker reports.

    Attributes:
        kind: ``epoch``, ``done``, ``failed`` or ``full``.
        run: the run.
        value: the number of finished epochs, or the error in one line.
    """

    kind: str
    run: Run
    value: Any


LOOK = 0.2
"""Seconds between looks at whether a worker lives and whether the study shall stop."""


class _Worker:
    """A process, and the group of all processes that it has started."""

    groups: ClassVar[set[int]] = set()
    """The groups that may still run."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=_work, args=(theirs, directory, threads))
        with _without_interrupts():  # the worker unblocks them when it ignores them
            self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.groups.add(self.process.pid)
        self.run: Run | None = None

    def give(self, run: Run) -> None:
        self.run = run
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: `run_all` sees it
            self.connection.send(run)

    def news(self, ready: bool) -> tuple[list[tuple[str, Any]], bool]:
        """What it has reported since it was last asked, and whether it is alive; if not, its group is not either."""
        # Whether the pipe has an end does not say it: a child of a dead worker may hold it open.
        died = has_ended(self.process)
        if died:
            end_group(self.process)
        news = []
        try:
            while (ready and self.connection.poll()) or (died and self.connection.poll(LOOK)):
                news.append(self.connection.recv())
        except (EOFError, OSError):
            died = True
            self.process.join(1)
        if died:
            self.kill()
        return news, not died

    def last_words(self, log: Path) -> str:
        """Why a run is over whose worker has died."""
        code = self.process.exitcode
        return f"its process died with exit code {code}{_signal_name(code)}" + (f" (see {log})" if log.exists() else "")

    def kill(self) -> None:
        end_group(self.process)
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.groups.discard(self.process.pid or 0)


def run_all(
    runs: Sequence[Run], directory: Path, jobs: int, threads: int, stopped: Callable[[], bool] = lambda: False
) -> Generator[Event, None, None]:
    """Perform the runs, ``jobs`` at a time, and report what happens.

    Close the generator: that kills the processes, as does the death of this one.

    Args:
        runs: in the order in which they are begun.
        directory: the directory of all runs.
        jobs: number of processes.
        threads: PyTorch threads of each.
        stopped: asked a few times a second; once it says so, no further event comes.
    """
    left = list(reversed(runs))
    workers: list[_Worker] = []
    try:
        for _ in range(min(jobs, len(runs))):
            workers.append(_Worker(directory, threads))
            workers[-1].give(left.pop())
        while busy := [worker for worker in workers if worker.run is not None]:
            ready = wait([worker.connection for worker in busy], LOOK)
            if stopped():
                return
            for worker in busy:
                run = worker.run
                assert run is not None
                news, alive = worker.news(worker.connection in ready)
                if not alive:
                    workers.remove(worker)
                if not alive and all(kind == "epoch" for kind, _ in news):
                    news.append(("failed", worker.last_words(directory / f"{run.name}.log")))
                if any(kind != "epoch" for kind, _ in news):
                    worker.run = None
                    if left and not alive:
                        workers.append(worker := _Worker(directory, threads))
                    if left:
                        worker.give(left.pop())
                for kind, value in news:
                    yield Event(kind, run, value)
    finally:
        for worker in workers:
            worker.kill()


def has_ended(process: BaseProcess) -> bool:
    """Whether a process is over; it stays a zombie, so that nobody else gets its number."""
    if not hasattr(os, "waitid") or process.pid is None:
        return process.exitcode is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def end_group(process: BaseProcess) -> None:
    """Kill all processes that a worker has started, and itself."""
    if hasattr(os, "killpg") and process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no such group, or none any more
            os.killpg(process.pid, signal.SIGKILL)


def end_all() -> None:
    """Kill every worker and what it has started, at once."""
    for group in _Worker.groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started within ignores Ctrl-C from its first moment; this one gets it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its own start would end the mask
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def _signal_name(code: int | None) -> str:
    if code is None or code >= 0:
        return ""
    with contextlib.suppress(ValueError):
        return f", {signal.Signals(-code).name}"
    return ""


def _work(connection: Connection, directory: Path, threads: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    for name in "SIGTERM", "SIGHUP":  # a forked one has the parent's
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(os, "setsid"):
        os.setsid()
    _die_with_the_parent()
    while True:
        try:
            run: Run = connection.recv()
        except EOFError:
            return
        log = directory / f"{run.name}.log"

        def tell(epoch: int) -> None:
            connection.send(("epoch", epoch))

        try:
            with output_to(log):
                try:
                    _perform(run, directory, threads, tell)
                except BaseException:
                    traceback.print_exc()
                    raise
        except BaseException as error:  # also SystemExit, by which a parser refuses
            connection.send(_why(error, log))
        else:
            log.unlink(missing_ok=True)
            connection.send(("done", None))
        gc.collect()  # a Trainer is full of cycles, and may hold the accelerator's memory


def _perform(run: Run, directory: Path, threads: int, tell: Callable[[int], None]) -> None:
    import torch

    from lightning_same.experiments.study.run import perform

    torch.set_num_threads(threads)
    perform(run, directory, tell)


def _why(error: BaseException, log: Path) -> tuple[str, str]:
    from lightning_same.experiments.study.run import disk_is_full

    kind = "full" if disk_is_full(error, log.parent) else "failed"
    return kind, f"{type(error).__name__}: {one_line(error, 300)} (see {log})"


def _die_with_the_parent() -> None:
    """End this process and all that it has started when its parent is gone, in whatever way that went."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(join: Callable[[], None]) -> None:
        join()
        if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, args=(parent.join,), daemon=True).start()
