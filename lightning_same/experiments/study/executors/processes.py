"""Runs on this machine: a few processes, each of which trains one run after the other.

Starting Python and importing Lightning takes longer than a small run does, so a process is kept. Each run seeds
everything anew, so that its result does not depend on what the process did before.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from lightning_same.experiments.study.executors.attempt import attempt, log_of
from lightning_same.experiments.study.executors.events import LOOK, Event, Perform
from lightning_same.experiments.study.own_process import train
from lightning_same.experiments.study.plan import Run

_CONTEXT = multiprocessing.get_context("spawn")  # a forked PyTorch hangs in its thread pools


class Processes:
    """An executor of processes that are kept.

    Args:
        jobs: how many.
        perform: what they do with a run.
    """

    def __init__(self, jobs: int, perform: Perform = train) -> None:
        self.jobs, self.perform = jobs, perform

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def check(self, runs: Sequence[Run], directory: Path, threads: int) -> list[str]:
        """Nothing is to be checked: this process has built what the workers will build."""
        return []

    def run_all(
        self, runs: Sequence[Run], directory: Path, threads: int, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Event, None, None]:
        """See `Executor.run_all`. Closing the generator kills the processes, as does the death of this one."""
        left = list(reversed(runs))
        workers: list[_Worker] = []
        try:
            for _ in range(min(self.jobs, len(runs))):
                workers.append(worker := _Worker(directory, threads, self.perform))
                yield worker.give(left.pop())
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
                        news.append(("failed", worker.last_words(log_of(run, directory))))
                    events = [Event(kind, run, value) for kind, value in news]
                    if any(kind != "epoch" for kind, _ in news):
                        worker.run = None
                        if left and not alive:
                            workers.append(worker := _Worker(directory, threads, self.perform))
                        if left:
                            events.append(worker.give(left.pop()))
                    yield from events
        finally:
            for worker in workers:
                worker.kill()

    def end(self) -> None:
        """Kill every worker and what it has started."""
        for group in _Worker.groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)


class _Worker:
    """A process, and the group of all processes that it has started."""

    groups: ClassVar[set[int]] = set()
    """The groups that may still run."""

    def __init__(self, directory: Path, threads: int, perform: Perform) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=_work, args=(theirs, directory, threads, perform))
        with _without_interrupts():  # the worker unblocks them when it ignores them
            self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.groups.add(self.process.pid)
        self.run: Run | None = None

    def give(self, run: Run) -> Event:
        self.run = run
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: `run_all` sees it
            self.connection.send(run)
        return Event("started", run, "")

    def news(self, ready: bool) -> tuple[list[tuple[Any, Any]], bool]:
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


def _work(connection: Connection, directory: Path, threads: int, perform: Perform) -> None:
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

        def tell(epoch: int) -> None:
            connection.send(("epoch", epoch))

        kind, why = attempt(run, directory, threads, tell, perform)
        connection.send(("failed" if kind == "busy" else kind, why or None))


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
