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
    """Whether it carries something from step to step, for which it needs a memory."""

    @abc.abstractmethod
    def active(self, at: Progress) -> bool:
        """Whether the step that begins at ``at`` may take the second pass."""

    def confirmed(self, grads: Sequence[Tensor], at: Progress, memory: Memory) -> bool:
        """Whether it takes it, now that g is known. Default: yes."""
        return True


class EveryStep(Timing):
    """Every step perturbs."""

    @override
    def active(self, at: Progress) -> bool:
        return True


class Every(Timing):
    """Steps 0, k, 2k, ... perturb: 1 + 1/k passes.

    Args:
        k: the period in optimizer steps; 1 is every step.
    """

    def __init__(self, k: int) -> None:
        self.k = check_int(self, "k", k, at_least=1)

    @override
    def active(self, at: Progress) -> bool:
        return at.step % self.k == 0


class RandomSteps(Timing):
    """Each step perturbs with probability p: 1 + p passes.

    The draw depends on the seed and the step alone: all processes agree, a resumed run draws what it would have drawn,
    and no random state is moved.

    Args:
        p: the probability, from 0 to 1.
        seed: of the draws.
    """

    def __init__(self, p: float, seed: int = 0) -> None:
        self.p = check_number(self, "p", p, at_least=0, at_most=1)
        self.seed = check_int(self, "seed", seed, at_least=0)

    @override
    def active(self, at: Progress) -> bool:
        return random.Random(f"{self.seed}/{at.step}").random() < self.p


class LastFraction(Timing):
    """Only the last part of training perturbs: 1 + share passes on the average.

    Args:
        share: how much of the training, from 0 to 1, counted from its end.
    """

    def __init__(self, share: float = 0.3) -> None:
        self.share = check_number(self, "share", share, at_least=0, at_most=1)

    @override
    def active(self, at: Progress) -> bool:
        return at.fraction(self) >= 1 - self.share


class LargeGradient(Timing):
    r"""AE-SAM: a step perturbs where the gradient is large for its time: 1 to 2 passes.

    With \|\|g\|\|^2, its moving mean m and variance v: where \|\|g\|\|^2 >= m + c sqrt(v), and c goes from ``start`` to
    ``end`` linearly over training. Reading the norm makes the host wait for the device once in each step.

    Args:
        start: c at the beginning of training; -1 perturbs at about five steps in six.
        end: c at its end; 1 perturbs at about one in six.
        keep: weight of the past in mean and variance, from 0 to 1.

    References:
        Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023.
    """

    stateful = True

    def __init__(self, start: float = -1.0, end: float = 1.0, keep: float = 0.9) -> None:
        self.start = check_number(self, "start", start)
        self.end = check_number(self, "end", end)
        self.keep = check_number(self, "keep", keep, at_least=0, at_most=1)

    @override
    def active(self, at: Progress) -> bool:
        at.fraction(self)
        return True

    @override
    def confirmed(self, grads: Sequence[Tensor], at: Progress, memory: Memory) -> bool:
        square = global_norm(grads).item() ** 2
        if not math.isfinite(square):
            return True
        kept = memory.numbers
        mean = self.keep * kept.get("square.mean", 0.0) + (1 - self.keep) * square
        variance = self.keep * kept.get("square.variance", 0.0) + (1 - self.keep) * (square - mean) ** 2
        kept.update({"square.mean": mean, "square.variance": variance})
        c = self.start + (self.end - self.start) * at.fraction(self)
        return square >= mean + c * math.sqrt(variance)
