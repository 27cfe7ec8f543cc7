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
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from lightning_same.experiments.study.plan import Run

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


class _Worker:
    def __init__(self, directory: Path, threads: int) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs, directory, threads))
        self.process.start()
        theirs.close()
        self.run: Run | None = None

    def give(self, run: Run) -> None:
        self.run = run
        with contextlib.suppress(BrokenPipeError):  # it has died: `wait` tells
            self.connection.send(run)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(runs: Sequence[Run], directory: Path, jobs: int, threads: int) -> Generator[Event, None, None]:
    """Perform the runs, ``jobs`` at a time, and report what happens.

    Close the generator: that kills the processes, as does the death of this one.

    Args:
        runs: in the order in which they are begun.
        directory: the directory of all runs.
        jobs: number of processes.
        threads: PyTorch threads of each.
    """
    left = list(reversed(runs))
    workers = [_Worker(directory, threads) for _ in range(min(jobs, len(runs)))]
    try:
        for worker in workers:
            worker.give(left.pop())
        while busy := [worker for worker in workers if worker.run is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                run = worker.run
                assert run is not None
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    kind, value = "failed", f"its process died with exit code {worker.process.exitcode}"
                    workers[workers.index(worker)] = worker = _Worker(directory, threads)
                if kind != "epoch":
                    worker.run = None
                    if left:
                        worker.give(left.pop())
                yield Event(kind, run, value)
    finally:
        for worker in workers:
            worker.kill()


def _work(connection: Connection, directory: Path, threads: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    _die_with_the_parent()
    import torch

    from lightning_same.experiments.study.run import disk_is_full, output_to, perform

    torch.set_num_threads(threads)
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
                    perform(run, directory, tell)
                except BaseException:
                    traceback.print_exc()
                    raise
        except BaseException as error:  # also SystemExit, by which a parser refuses
            kind = "full" if disk_is_full(error, directory) else "failed"
            connection.send((kind, f"{type(error).__name__}: {error}".splitlines()[0] + f" (see {log})"))
        else:
            log.unlink(missing_ok=True)
            connection.send(("done", None))
        gc.collect()  # a Trainer is full of cycles, and may hold the accelerator's memory


def _die_with_the_parent() -> None:
    """End this process when its parent is gone, in whatever way that went."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(join: Callable[[], None]) -> None:
        join()
        os._exit(1)

    threading.Thread(target=watch, args=(parent.join,), daemon=True).start()
