"""Which steps take the second pass."""

import abc
import math
import random
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.tensors import global_norm
from lightning_same.rules.progress import Progress
from lightning_same.rules.settings import Settings, check_int, check_number
from lightning_same.rules.state import Memory


class Timing(Settings, abc.ABC):
    """Decides which steps perturb. The others cost one forward-backward pass and are the plain optimizer's."""

    stateful: ClassVar[bool] = False
    """Whether it keeps a state from step to step, for which it needs a memory."""

    @abc.abstractmethod
    def active(self, at: Progress) -> bool:
        """Whether the step that begins at ``at`` may take the second pass.

        Args:
            at: how far training has come.

        Raises:
            ValueError: if the length of the training is needed and not known.
        """

    def confirmed(self, grads: Sequence[Tensor], at: Progress, memory: Memory) -> bool:
        """Whether it takes the second pass, now that g is known. Default: yes.

        Args:
            grads: g.
            at: how far training has come.
            memory: what this timing keeps from step to step.
        """
        return True


class EveryStep(Timing):
    """Every step perturbs: 2 passes."""

    @override
    def active(self, at: Progress) -> bool:
        return True


class Every(Timing):
    """Steps 0, k, 2k, ... perturb: 1 + 1/k passes.

    Args:
        k: the period in optimizer steps; 1 is every step.

    Raises:
        ValueError: if ``k`` is not a whole number >= 1.

    Example:
        >>> [Every(3).active(Progress(step)) for step in range(4)]
        [True, False, False, True]
    """

    def __init__(self, k: int) -> None:
        self.k = check_int(self, "k", k, at_least=1)

    @override
    def active(self, at: Progress) -> bool:
        return at.step % self.k == 0


class RandomSteps(Timing):
    """Each step perturbs with probability p: 1 + p passes.

    The draw depends on the seed and the step alone: all processes agree, a resumed run draws what it would have drawn,
    and no global random state changes.

    Args:
        p: the probability, from 0 to 1.
        seed: of the draws.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> sum(RandomSteps(0.25).active(Progress(step)) for step in range(10_000))
        2463

    References:
        Zhao et al., arXiv:2203.09962, with a constant probability.
    """

    def __init__(self, p: float, seed: int = 0) -> None:
        self.p = check_number(self, "p", p, at_least=0, at_most=1)
        self.seed = check_int(self, "seed", seed, at_least=0)

    @override
    def active(self, at: Progress) -> bool:
        return random.Random(f"{self.seed}/{at.step}").random() < self.p


class LastFraction(Timing):
    """Only the last steps of training perturb: 1 + share passes on average.

    Of ``total`` steps, the last share * total perturb, rounded down. The length of the training must be known.

    Args:
        share: fraction of the training, from 0 to 1, counted from its end.

    Raises:
        ValueError: if ``share`` is out of range.

    Example:
        >>> [LastFraction(0.7).active(Progress(step, total=10)) for step in (2, 3, 9)]
        [False, True, True]

    References:
        Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training, ICLR 2025,
        arXiv:2410.10373.
    """

    def __init__(self, share: float = 0.3) -> None:
        self.share = check_number(self, "share", share, at_least=0, at_most=1)

    @override
    def active(self, at: Progress) -> bool:
        total = at.length(self)
        # 0.7 * 10 is 7.000000000000001 and 1/3 * 9 may be 2.9999999999999996.
        return at.step >= total - math.floor(round(self.share * total, 6))


class LargeGradient(Timing):
    """A step perturbs where the gradient is large for its time: 1 to 2 passes.

    With q = ||g||^2, its moving mean m and its moving variance v: a step perturbs where q >= m + c sqrt(v), and c goes
    from ``start`` to ``end`` in a straight line over training, whose length must be known. Reading q makes the host
    wait for the device once in each step.

    Args:
        start: c at the beginning of training, in standard deviations; -1 perturbs at about five steps in six.
        end: c at its end; 1 perturbs at about one step in six.
        keep: weight of the past in mean and variance, from 0 to 1.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023, arXiv:2304.14647.
    """

    stateful = True

    def __init__(self, start: float = -1.0, end: float = 1.0, keep: float = 0.9) -> None:
        self.start = check_number(self, "start", start)
        self.end = check_number(self, "end", end)
        self.keep = check_number(self, "keep", keep, at_least=0, at_most=1)

    @override
    def active(self, at: Progress) -> bool:
        at.length(self)
        return True

    @override
    def confirmed(self, grads: Sequence[Tensor], at: Progress, memory: Memory) -> bool:
        norm = global_norm(grads).item()
        # `x * x` overflows to inf, where `x**2` raises.
        square = norm * norm
        numbers = memory.numbers
        mean = self.keep * numbers.get("square.mean", 0.0) + (1 - self.keep) * square
        deviation = square - mean
        variance = self.keep * numbers.get("square.variance", 0.0) + (1 - self.keep) * deviation * deviation
        if not math.isfinite(variance):
            return True
        numbers.update({"square.mean": mean, "square.variance": variance})
        c = self.start + (self.end - self.start) * at.fraction(self)
        return square >= mean + c * math.sqrt(variance)
