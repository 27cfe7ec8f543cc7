"""Ctrl-C and its kin, at any distance from each other."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from lightning_same.cli.errors import INTERRUPTED
from lightning_same.experiments.study.writing import writing


class Interrupts:
    """While this lasts, the first signal asks to stop, and the second ends the process at once, without a report.

    Neither raises an exception, which could come at any place and leave things half done. While files that belong
    together are being written, which takes a moment, the second one does nothing.

    Args:
        end: called before the process ends.

    Attributes:
        stopped: whether a signal has come.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end
        self.stopped = False
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for name in "SIGINT", "SIGTERM", "SIGHUP":
                if hasattr(signal, name):  # SIGHUP is not on Windows
                    number = getattr(signal, name)
                    self._kept[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped and not writing():
            self.end()
            os._exit(INTERRUPTED)
        self.stopped = True
