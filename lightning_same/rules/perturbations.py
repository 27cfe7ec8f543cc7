"""Where pass two looks: the direction of the perturbation e, to be multiplied by the radius rho."""

import abc
import random
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.rounding import round_stochastically
from lightning_same.gradients.tensors import Formula, Rounding, global_norm, inverse, norm_of
from lightning_same.rules.progress import Progress
from lightning_same.rules.settings import Settings, check_int, check_number
from lightning_same.rules.state import Memory


class Ascent(NamedTuple):
    """A direction: e = rho * scale * vector, or e = rho * scale * formula(vector, *others, w).

    Attributes:
        vector: one tensor per parameter. May be the gradients themselves, so it is read only.
        scale: a scalar tensor.
        formula: acts on each element alone. It is called with pieces, so that no list as large as the parameters is
            allocated for its result.
        others: more lists of one tensor per parameter, which the formula takes.
    """

    vector: Sequence[Tensor]
    scale: Tensor
    formula: Formula | None = None
    others: tuple[Sequence[Tensor], ...] = ()


class Perturbation(Settings, abc.ABC):
    """The direction in which the weights are perturbed before pass two. The radius rho belongs to the rule."""

    stateful: ClassVar[bool] = False
    """Whether it keeps a state from step to step, for which it needs a memory."""

    scale_free: ClassVar[bool] = True
    """Whether a multiple of g gives the same direction, so that a loss scale may stay on it."""

    @abc.abstractmethod
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        """The direction at w.

        Args:
            params: w, the tensors to be perturbed.
            grads: g at w, the same shapes.
            memory: what this perturbation keeps from step to step.

        Returns:
            The direction. It is zero where the gradient is zero.
        """

    def rounding(self, at: Progress) -> Rounding | None:
        """How w + e is rounded for weights of half precision. Default: None, to the nearest value.

        Args:
            at: how far training has come.
        """
        return None

    def remember(self, grads: Sequence[Tensor], memory: Memory) -> None:
        """Update what this perturbation carries, after e has been added to the weights. Default: nothing.

        Args:
            grads: g at w.
            memory: what this perturbation keeps from step to step.
        """


class Normalized(Perturbation):
    """SAM's: e = rho * g / ||g||, with one L2 norm over all perturbed parameters.

    Example:
        >>> direction = Normalized().direction([torch.zeros(2)], [torch.tensor([3.0, 4.0])], Memory([]))
        >>> direction.vector[0] * direction.scale
        tensor([0.6000, 0.8000])

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021,
        arXiv:2010.01412.
    """

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return unit(grads)


class Adaptive(Perturbation):
    """ASAM's: e = rho * T^2 g / ||T g|| with T = |w| + eta, elementwise.

    It does not change when weights are rescaled in a way that leaves the network's function as it is. Good radii are
    about ten times SAM's.

    Args:
        eta: added to |w|, so that weights near 0 are perturbed too; >= 0. Default: 0.01, as in the authors' code.

    Raises:
        ValueError: if ``eta`` is negative or not finite.

    Example:
        >>> w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0])
        >>> direction = Adaptive(eta=0.0).direction([w], [g], Memory([]))
        >>> direction.formula(g, w) * direction.scale
        tensor([0.6000, 1.6000])

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
        ICML 2021, arXiv:2102.11600.
    """

    def __init__(self, eta: float = 0.01) -> None:
        self.eta = check_number(self, "eta", eta, at_least=0)

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        norm = norm_of(lambda g, w: w.abs().add_(self.eta).mul_(g), grads, params)
        return Ascent(grads, inverse(norm), lambda g, w: w.abs().add_(self.eta).square_().mul_(g))


class Unnormalized(Perturbation):
    """USAM's: e = rho * g, which shrinks with the gradient.

    References:
        Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization, ICML 2022, arXiv:2206.06232.
    """

    scale_free = False

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        one = torch.ones((), dtype=torch.promote_types(torch.float32, grads[0].dtype), device=grads[0].device)
        return Ascent(grads, one)


class Friendly(Perturbation):
    """FriendlySAM's: e = rho * u / ||u|| with u = g - sigma * m, m the moving average of g before this step.

    u is what this batch adds to the average gradient. The first step takes u = g; after each step
    m = keep * m + (1 - keep) * g. Keeps one copy of the parameters.

    Args:
        sigma: how much of the average is subtracted; 0 is SAM.
        keep: weight of the past in the average, from 0 to 1.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350.
    """

    stateful = True
    scale_free = False

    def __init__(self, sigma: float = 1.0, keep: float = 0.9) -> None:
        self.sigma = check_number(self, "sigma", sigma)
        self.keep = check_number(self, "keep", keep, at_least=0, at_most=1)

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        former = memory.get("friendly.average")
        if self.sigma == 0 or all(m is None for m in former):
            return unit(grads)
        average = [torch.zeros_like(g) if m is None else m for g, m in zip(grads, former, strict=True)]

        def new(g: Tensor, m: Tensor, w: Tensor | None = None) -> Tensor:
            return torch.sub(g, m, alpha=self.sigma)

        return Ascent(grads, inverse(norm_of(new, grads, average)), new, (average,))

    @override
    def remember(self, grads: Sequence[Tensor], memory: Memory) -> None:
        memory.average("friendly.average", grads, self.keep)


class VarianceSuppressed(Perturbation):
    """VaSSO's: e = rho * m / ||m|| with m = (1 - theta) * m + theta * g, which begins with the first g.

    Keeps one copy of the parameters.

    Args:
        theta: weight of this step's gradient, above 0 and at most 1; 1 is SAM. Default: 0.2, as in SANER's
            experiments.

    Raises:
        ValueError: if ``theta`` is out of range.

    References:
        Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023,
        arXiv:2309.15639.
    """

    stateful = True
    scale_free = False

    def __init__(self, theta: float = 0.2) -> None:
        self.theta = check_number(self, "theta", theta, above=0, at_most=1)

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return unit(memory.average("vasso.average", grads, 1 - self.theta))


class MomentumAscent(Perturbation):
    """Momentum-SAM's: e = -rho * v / ||v||. The optimizer's momentum v takes the place of g.

    References:
        Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, 2024,
        arXiv:2401.12033.
    """

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return Ascent(grads, -inverse(global_norm(grads)))


class StochasticRounding(Perturbation):
    """Another perturbation, whose w + e is rounded at random where the weights themselves are in half precision.

    There, e is smaller than half the distance between two values for most weights, and rounding to the nearest leaves
    them where they are: pass two sees little of e. Rounded up or down at random, with probabilities by which the
    expectation is w + e, all of e is there along its own direction, with noise beside it. For weights in float32 or
    float64 it changes nothing, with or without autocast.

    The draws depend on the seed and the step alone: every process and a resumed run draw the same. In a plain loop,
    pass the step as ``at=Progress(step)``. Where parameters are sharded, each shard draws for itself.

    Args:
        perturbation: the direction of e. Default: SAM's `Normalized`.
        seed: of the draws.

    Raises:
        ValueError: if ``seed`` is out of range.
        TypeError: if the perturbation is of the wrong kind.

    Example:
        >>> from lightning_same.rules.base import Rule
        >>> w, g = torch.ones(10_000, dtype=torch.bfloat16), torch.ones(10_000, dtype=torch.bfloat16)
        >>> with Rule(0.1).perturbed([w], [g]):  # 0.001 for each weight, and 1.0078 is the next number
        ...     print(w.float().sub(1).sum().item())
        0.0
        >>> with Rule(0.1, StochasticRounding()).perturbed([w], [g]):
        ...     print(round(w.float().sub(1).sum().item()))
        10
    """

    hidden_defaults: ClassVar = {"perturbation": Normalized()}

    def __init__(self, perturbation: Perturbation | None = None, seed: int = 0) -> None:
        self.perturbation = Normalized() if perturbation is None else perturbation
        if not isinstance(self.perturbation, Perturbation):
            raise TypeError(f"StochasticRounding: `perturbation` must be a Perturbation, got {perturbation!r}.")
        self.seed = check_int(self, "seed", seed, at_least=0)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the perturbation is."""
        return self.perturbation.stateful

    @property
    def scale_free(self) -> bool:  # type: ignore[override]
        """Whether the perturbation is."""
        return self.perturbation.scale_free

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return self.perturbation.direction(params, grads, memory)

    @override
    def remember(self, grads: Sequence[Tensor], memory: Memory) -> None:
        self.perturbation.remember(grads, memory)

    @override
    def rounding(self, at: Progress) -> Rounding:
        seed = random.Random(f"{self.seed}/{at.step}").getrandbits(63)
        draws_on = cache(lambda device: torch.Generator(device).manual_seed(seed))

        def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
            return round_stochastically(exact, dtype, draws_on(exact.device))

        return rounded


def unit(vector: Sequence[Tensor]) -> Ascent:
    """The vector divided by its norm; zero if it is zero."""
    return Ascent(vector, inverse(global_norm(vector)))
