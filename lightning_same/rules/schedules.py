"""Numbers that change as training goes on, for a radius or a gain."""

import abc
import math

from typing_extensions import override

from lightning_same.rules.progress import Progress
from lightning_same.rules.settings import Settings, check_int, check_number


class Schedule(Settings, abc.ABC):
    """A number that changes as training goes on."""

    @abc.abstractmethod
    def value(self, at: Progress) -> float:
        """The number for the step that begins at ``at``.

        Args:
            at: how far training has come.
        """


class Ramp(Schedule):
    """From ``start`` to ``end`` in a straight line over the first epochs, then ``end``.

    In epoch n, counted from 1: start + (end - start) * min(1, n / epochs). So the first epoch is already one step up,
    as in SANER's published code.

    Args:
        start: the value before training.
        end: the value from epoch ``epochs`` on.
        epochs: length of the ramp in epochs; 0 means ``end`` throughout.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> ramp = Ramp(start=1.0, end=0.5, epochs=2)
        >>> [ramp.value(Progress(epoch=epoch)) for epoch in (0, 1, 2)]
        [0.75, 0.5, 0.5]
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
    """A number that changes at each step over the whole training, whose length must be known.

    Args:
        start: the value at the first step.
        end: the value after the last step.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, start: float, end: float = 0.0) -> None:
        self.start = check_number(self, "start", start)
        self.end = check_number(self, "end", end)


class Linear(StepSchedule):
    """From ``start`` to ``end`` in a straight line: start + (end - start) * t, t the fraction of training that is over.

    Args:
        start: the value at the first step.
        end: the value after the last step.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> Linear(start=0.2).value(Progress(step=1, total=4))
        0.15000000000000002
    """

    @override
    def value(self, at: Progress) -> float:
        return self.start + (self.end - self.start) * at.fraction(self)


class Cosine(StepSchedule):
    """From ``start`` to ``end`` along half a cosine: end + (start - end) * (1 + cos(pi t)) / 2.

    Args:
        start: the value at the first step.
        end: the value after the last step.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [round(Cosine(start=0.2).value(Progress(step, total=4)), 3) for step in (0, 1, 2, 4)]
        [0.2, 0.171, 0.1, 0.0]
    """

    @override
    def value(self, at: Progress) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * at.fraction(self))) / 2


class FollowLR(Schedule):
    """In proportion to the learning rate: floor + (peak - floor) * lr / peak lr.

    Args:
        peak: the value at the learning rate's peak.
        floor: the value where the learning rate is 0.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> FollowLR(peak=0.25, floor=0.125).value(Progress(lr_ratio=0.5))
        0.1875

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, arXiv:2203.08065,
        whose radius follows the learning rate.
    """

    def __init__(self, peak: float, floor: float = 0.0) -> None:
        self.peak = check_number(self, "peak", peak)
        self.floor = check_number(self, "floor", floor)

    @override
    def value(self, at: Progress) -> float:
        return self.floor + (self.peak - self.floor) * at.lr_ratio


def value(of: float | Schedule, at: Progress) -> float:
    """A number as it is, a schedule at its present value.

    Args:
        of: the number or the schedule.
        at: how far training has come.

    Raises:
        ValueError: if a schedule needs the length of the training and it is not known.
    """
    # A float first, as nearly always: an abstract class asks slowly whether something is its instance.
    return of if type(of) is float or not isinstance(of, Schedule) else of.value(at)
