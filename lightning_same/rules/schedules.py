"""Numbers that change as training goes on."""

import abc
import math

from typing_extensions import override

from lightning_same.rules.progress import Progress
from lightning_same.rules.settings import Settings, check_int, check_number


class Schedule(Settings, abc.ABC):
    """A number that changes as training goes on."""

    @abc.abstractmethod
    def value(self, at: Progress) -> float:
        """The number that holds at ``at``."""


class Ramp(Schedule):
    """A number that goes from ``start`` to ``end`` linearly over the first epochs and stays there.

    In epoch n, counted from 1: start + (end - start) * min(1, n / epochs). The first epoch has already taken one step,
    as in the schedule of SANER's published code.

    Args:
        start: the value before training.
        end: the value from epoch ``epochs`` on.
        epochs: length of the ramp; 0 means ``end`` throughout.
    """

    def __init__(self, start: float, end: float, epochs: int) -> None:
        self.start = check_number(self, "start", start)
        self.end = check_number(self, "end", end)
        self.epochs = check_int(self, "epochs", epochs, at_least=0)

    @override
    def value(self, at: Progress) -> float:
        if at.epoch + 1 >= self.epochs:
            return self.end
        return self.start + (self.end - self.start) * (at.epoch + 1) / self.epochs


class StepSchedule(Schedule):
    """A number that changes step by step over the whole training.

    Args:
        start: the value at the first step.
        end: the value after the last.
    """

    def __init__(self, start: float, end: float = 0.0) -> None:
        self.start = check_number(self, "start", start)
        self.end = check_number(self, "end", end)


class Linear(StepSchedule):
    """From ``start`` to ``end`` in a straight line."""

    @override
    def value(self, at: Progress) -> float:
        return self.start + (self.end - self.start) * at.fraction(self)


class Cosine(StepSchedule):
    """From ``start`` to ``end`` along half a cosine."""

    @override
    def value(self, at: Progress) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * at.fraction(self))) / 2


class FollowLR(Schedule):
    """In proportion to the learning rate: floor + (peak - floor) * lr / peak lr, as GSAM sets its radius.

    Args:
        peak: the value at the learning rate's peak.
        floor: the value where the learning rate is 0.
    """

    def __init__(self, peak: float, floor: float = 0.0) -> None:
        self.peak = check_number(self, "peak", peak)
        self.floor = check_number(self, "floor", floor)

    @override
    def value(self, at: Progress) -> float:
        return self.floor + (self.peak - self.floor) * at.lr_ratio


def value(of: float | Schedule, at: Progress) -> float:
    """A constant as it is, a schedule at its present value."""
    return of.value(at) if isinstance(of, Schedule) else of
