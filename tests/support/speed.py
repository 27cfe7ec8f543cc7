"""How slow this machine is now, for limits that a hang alone shall reach."""

import os
import time
from functools import cache

IDLE = 0.15
"""Seconds that `_piece_of_work` takes on a core that does nothing else."""


def slowness() -> float:
    """How many times as long as on an idle machine something may take; at least 1."""
    return max(1.0, _piece_of_work() / IDLE, os.getloadavg()[0] / (os.cpu_count() or 1))


@cache
def _piece_of_work() -> float:
    start, total = time.perf_counter(), 0
    for number in range(2_000_000):
        total += number
    return time.perf_counter() - start
