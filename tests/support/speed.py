"""How slow this machine is now, for limits that a hang alone shall reach."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.process import BaseProcess

IDLE = 0.15
"""Seconds that `_piece_of_work` takes on a core that does nothing else."""

SLICE = 0.5
"""Seconds after which a wait looks again at how slow the machine is."""


def slowness() -> float:
    """How many times as long as on an idle machine something may take; at least 1.

    How many processes want a core is looked at now, and as the average of the last minute, which lags behind.
    """
    return max(1.0, _piece_of_work() / IDLE, max(_running(), os.getloadavg()[0]) / (os.cpu_count() or 1))


def in_time(done: Callable[[float], object], seconds: float) -> bool:
    """Whether something comes to its end within so many seconds of an idle machine.

    A second counts as ``1 / slowness()`` of that moment: a burst that comes while we wait lengthens the limit.

    Args:
        done: waits for up to so many seconds, and says whether the end has come.
        seconds: the limit, on an idle machine.
    """
    left = seconds
    while left > 0:
        began = time.monotonic()
        if done(min(SLICE, left)):
            return True
        left -= (time.monotonic() - began) / slowness()
    return False


def ended(process: BaseProcess | threading.Thread, seconds: float) -> bool:
    """Whether a process or a thread ends within so many seconds of an idle machine."""

    def joined(seconds: float) -> bool:
        process.join(seconds)
        return not process.is_alive()

    return in_time(joined, seconds)


@contextmanager
def idle_seconds() -> Iterator[Callable[[], float]]:
    """What tells how many seconds of an idle machine have passed within the context."""
    over = threading.Event()
    passed = 0.0

    def count() -> None:
        nonlocal passed
        last, is_over = time.monotonic(), False
        while not is_over:
            is_over = over.wait(SLICE)
            now = time.monotonic()
            passed, last = passed + (now - last) / slowness(), now

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield lambda: passed
    finally:
        over.set()
        counter.join()


def _running() -> int:
    """How many processes of this machine want a core now; 0 where that cannot be read."""
    try:
        with open("/proc/stat") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("procs_running"))
    except (OSError, StopIteration):
        return 0


@cache
def _piece_of_work() -> float:
    start, total = time.perf_counter(), 0
    for number in range(2_000_000):
        total += number
    return time.perf_counter() - start
