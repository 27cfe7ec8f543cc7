"""What becomes the step: d, made from the base gradient g and the perturbed gradient s."""

import abc
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.checkpoints import CKPTS, indicator
from lightning_same.gradients.tensors import (
    add_scaled_,
    at_least_float32,
    dot_and_square,
    elementwise_,
    global_norm,
    inverse,
)
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Schedule, value
from lightning_same.rules.settings import Settings, check_number
from lightning_same.rules.state import Memory


class Combination(Settings, abc.ABC):
    """Makes the step gradient d.

    A combination is homogeneous of degree one: for c > 0, (c g, c s) gives c d. So a loss scale, which multiplies both
    gradients in mixed precision, passes through it.
    """

    stateful: ClassVar[bool] = False
    """Whether it keeps a state from step to step, for which it needs a memory."""

    needs_grads: ClassVar[bool] = True
    """Whether d depends on g. If not, g is not kept, which saves one copy of the parameters."""

    @abc.abstractmethod
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        """Overwrite s with d.

        Args:
            grads: g, read only.
            perturbed_grads: s on entry, d on return.
            at: how far training has come.
            memory: what this combination keeps from step to step.
        """

    def plain_step_(self, grads: Sequence[Tensor], memory: Memory) -> None:
        """Overwrite g with d on a step without a second pass. Default: d = g.

        Args:
            grads: g on entry, d on return.
            memory: what this combination keeps from step to step.
        """


class Perturbed(Combination):
    """SAM's: d = s."""

    needs_grads = False

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        pass


class Elementwise(Combination):
    """A combination that is a formula for each element alone."""

    @abc.abstractmethod
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        """d for pieces of g and s.

        Args:
            g: a piece of the base gradient, any shape; must not be changed.
            s: the same piece of the perturbed gradient; may be overwritten.
            at: how far training has come.
        """

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        elementwise_(partial(self.formula, at=at), grads, perturbed_grads)


class Gains(Elementwise):
    """d = gain_k * s on checkpoint k, and s on the rest, with r = s/g.

    Args:
        ckpt1: gain where r > 1, a number or a schedule.
        ckpt2: gain where 0 < r < 1.
        ckpt3: gain where r < -1.
        ckpt4: gain where -1 < r < 0.

    Raises:
        ValueError: if a gain is not a finite number.

    Example:
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> Gains(10, 20, 30, 40).formula(g, s, Progress())
        tensor([ 20.,  10., -60., -20.,   1.])
    """

    def __init__(
        self,
        ckpt1: float | Schedule = 1.0,
        ckpt2: float | Schedule = 1.0,
        ckpt3: float | Schedule = 1.0,
        ckpt4: float | Schedule = 1.0,
    ) -> None:
        self.ckpt1 = self._gain("ckpt1", ckpt1)
        self.ckpt2 = self._gain("ckpt2", ckpt2)
        self.ckpt3 = self._gain("ckpt3", ckpt3)
        self.ckpt4 = self._gain("ckpt4", ckpt4)

    def _gain(self, name: str, gain: float | Schedule) -> float | Schedule:
        return gain if isinstance(gain, Schedule) else check_number(self, name, gain)

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        by_ckpt = zip(CKPTS, (self.ckpt1, self.ckpt2, self.ckpt3, self.ckpt4), strict=True)
        gains = {ckpt: value(gain, at) for ckpt, gain in by_ckpt}
        gains = {ckpt: gain for ckpt, gain in gains.items() if gain != 1}
        if not gains:
            return s
        dtype = at_least_float32(s)
        along, size = g.sign().mul_(s).to(dtype), g.abs().to(dtype)
        factor: Tensor | float = 1.0
        for ckpt, gain in gains.items():
            inside = indicator(ckpt, along, size)
            factor = (factor - inside).add_(inside, alpha=gain)  # From 1 to 0 to the gain, without rounding.
        return s.mul_(factor)


class Select(Elementwise):
    """d = s on the chosen checkpoints, g on the others and on the rest.

    Args:
        ckpts: the checkpoints that take SAM's gradient, one of 1 to 4 or several.

    Raises:
        ValueError: if ``ckpts`` is not among the choices.

    Example:
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> Select((1, 4)).formula(g, s, Progress())
        tensor([ 2.0000,  1.0000,  1.0000, -0.5000,  1.0000])
    """

    def __init__(self, ckpts: int | Sequence[int]) -> None:
        self.ckpts = check_ckpts(self, "ckpts", ckpts)

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        dtype = at_least_float32(s)
        along, size = g.sign().mul_(s).to(dtype), g.abs().to(dtype)
        inside = reduce(Tensor.add_, (indicator(ckpt, along, size) for ckpt in self.ckpts))
        # s * 1 + g * 0 or s * 0 + g * 1, without rounding.
        return s.mul_(inside).add_(inside.neg_().add_(1).mul_(g))


class Direction(Elementwise):
    """d = |g| * sign(s): SAM's direction with the base gradient's magnitude.

    Example:
        >>> Direction().formula(torch.tensor([1.0, -2.0]), torch.tensor([-5.0, -5.0]), Progress())
        tensor([-1., -2.])
    """

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        return g.abs() * s.sign()


class Magnitude(Elementwise):
    """d = |s| * sign(g): SAM's magnitude with the base gradient's direction.

    Example:
        >>> Magnitude().formula(torch.tensor([1.0, -2.0]), torch.tensor([-5.0, -5.0]), Progress())
        tensor([ 5., -5.])
    """

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        return s.abs() * g.sign()


class Mix(Elementwise):
    """d = (1 - weight) * g + weight * s.

    Args:
        weight: of s; 1 is SAM, 0 the plain gradient, and above 1 goes beyond s.

    Raises:
        ValueError: if ``weight`` is not a finite number.

    Example:
        >>> Mix(1.5).formula(torch.tensor([1.0]), torch.tensor([3.0]), Progress())
        tensor([4.])
    """

    def __init__(self, weight: float) -> None:
        self.weight = check_number(self, "weight", weight)

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        # Not by lerp, g + weight * (s - g): at weight 1 this is s, and at 0 it is g, bit for bit.
        return (1 - self.weight) * g + self.weight * s


class SurrogateGap(Combination):
    """GSAM's: d = s - alpha * u, with u = g - (g . s / ||s||^2) s, the part of g that is orthogonal to s.

    Args:
        alpha: how much of u is subtracted; 0 is SAM.

    Raises:
        ValueError: if ``alpha`` is not a finite number.

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, arXiv:2203.08065.
    """

    def __init__(self, alpha: float = 0.4) -> None:
        self.alpha = check_number(self, "alpha", alpha)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        if self.alpha == 0:
            return
        product, square = dot_and_square(grads, perturbed_grads)
        along = product * inverse(square)
        factor = 1 + self.alpha * along

        def formula(g: Tensor, s: Tensor) -> Tensor:
            # s - alpha * (g - along * s)
            return s.mul_(factor.to(s.device)).sub_(g, alpha=self.alpha)

        elementwise_(formula, grads, perturbed_grads)


class LookSAMReuse(Combination):
    """LookSAM's: on steps without a second pass d = g + alpha * ||g|| * u / ||u||, with the last u; else d = s.

    u = s - (g . s / ||g||^2) g is the part of s that is orthogonal to g: what SAM adds, which changes slowly. Keeps one
    copy of the parameters.

    Args:
        alpha: how much of u is added; with 0 the steps without a second pass are plain.

    Raises:
        ValueError: if ``alpha`` is not a finite number.

    References:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022, arXiv:2203.02714.
    """

    stateful = True

    def __init__(self, alpha: float = 0.7) -> None:
        self.alpha = check_number(self, "alpha", alpha)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        sums = dot_and_square(perturbed_grads, grads)
        product, square = sums
        along = product * inverse(square)

        def orthogonal(g: Tensor, s: Tensor, former: Tensor) -> Tensor:
            return torch.sub(s, g * along.to(g.device))

        memory.compute("looksam.orthogonal", orthogonal, grads, perturbed_grads, finite=sums.isfinite().all())

    @override
    def plain_step_(self, grads: Sequence[Tensor], memory: Memory) -> None:
        kept = memory.get("looksam.orthogonal")
        u = [v for v in kept if v is not None]
        if u:
            scale = self.alpha * global_norm(grads) * inverse(global_norm(u))
            add_scaled_([g for g, v in zip(grads, kept, strict=True) if v is not None], u, scale, [1.0] * len(u))


class Chain(Combination):
    """One combination after another: the first makes d of g and s, the next takes that d for s.

    SANER on GSAM is ``Chain([SurrogateGap(0.01), Gains(ckpt2=0.5)])``.

    Args:
        links: the combinations, in order.

    Raises:
        ValueError: if there is none, or one is not a combination.

    Example:
        >>> s = [torch.tensor([2.0])]
        >>> Chain([Mix(2.0), Gains(ckpt1=10.0)]).combine_([torch.tensor([1.0])], s, Progress(), Memory([]))
        >>> s
        [tensor([30.])]
    """

    def __init__(self, links: Sequence[Combination]) -> None:
        self.links = tuple(links)
        if not self.links or not all(isinstance(link, Combination) for link in self.links):
            raise ValueError(f"Chain: `links` must be one combination or more, got {links!r}.")

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether one of the links is."""
        return any(link.stateful for link in self.links)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        for link in self.links:
            link.combine_(grads, perturbed_grads, at, memory)

    @override
    def plain_step_(self, grads: Sequence[Tensor], memory: Memory) -> None:
        for link in self.links:
            link.plain_step_(grads, memory)


def check_ckpts(owner: Settings, name: str, ckpts: int | Sequence[int]) -> tuple[int, ...]:
    """The chosen checkpoints as a tuple.

    Args:
        owner: the object that is constructed; its class is named in the error.
        name: of the argument.
        ckpts: what the user has passed.

    Raises:
        ValueError: names the owner, the argument, the choices and what was got.
    """
    chosen: tuple[Any, ...] = (ckpts,)
    # An array without dimensions has `__iter__` and does not iterate.
    if isinstance(ckpts, Iterable) and not isinstance(ckpts, str | bytes | Mapping) and getattr(ckpts, "shape", True):
        chosen = tuple(ckpts)
    known = all(isinstance(ckpt, Integral) and not isinstance(ckpt, bool) and ckpt in CKPTS for ckpt in chosen)
    if not chosen or not known or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be one of 1, 2, 3, 4 or several of them, each once, such as (1, 3);"
            f" got {ckpts!r}."
        )
    return tuple(int(ckpt) for ckpt in chosen)
