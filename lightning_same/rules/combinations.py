"""What becomes the step: d, made from the base gradient g and the perturbed gradient s."""

import abc
from collections.abc import Iterable, Sequence
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.checkpoints import CKPTS, at_least_float32, indicator, split
from lightning_same.gradients.tensors import elementwise_, global_dot, global_norm, inverse
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Schedule, value
from lightning_same.rules.settings import Settings, check_number
from lightning_same.rules.state import Memory


class Combination(Settings, abc.ABC):
    """Makes the step gradient.

    A combination is homogeneous of degree one: for c > 0, (c g, c s) gives c d. So a loss scale, which multiplies both
    gradients in mixed precision, passes through it.
    """

    stateful: ClassVar[bool] = False
    """Whether it carries something from step to step, for which it needs a memory."""

    needs_grads: ClassVar[bool] = True
    """Whether d depends on g; where it does not, g is not kept, which saves one copy of the parameters."""

    @abc.abstractmethod
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        """Overwrite s with d.

        Args:
            grads: g, read only.
            perturbed_grads: s on entry, d on return.
            at: how far training has come.
            memory: what this combination carries from step to step.
        """

    def plain_step_(self, grads: Sequence[Tensor], memory: Memory) -> None:
        """Overwrite g with d on a step without a second pass. Default: d = g.

        Args:
            grads: g on entry, d on return.
            memory: what this combination carries from step to step.
        """


class Perturbed(Combination):
    """SAM: d = s."""

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
        """d for tensors g and s of equal shape; must not change g, and may overwrite s."""

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        elementwise_(partial(self.formula, at=at), grads, perturbed_grads)


class Gains(Elementwise):
    """d = gain_k * s on checkpoint k, and s on the rest.

    Args:
        ckpt1: gain where r > 1; a number or a schedule.
        ckpt2: gain where 0 < r < 1.
        ckpt3: gain where r < -1.
        ckpt4: gain where -1 < r < 0.
    """

    def __init__(
        self,
        ckpt1: float | Schedule = 1.0,
        ckpt2: float | Schedule = 1.0,
        ckpt3: float | Schedule = 1.0,
        ckpt4: float | Schedule = 1.0,
    ) -> None:
        self.ckpt1 = ckpt1
        self.ckpt2 = ckpt2
        self.ckpt3 = ckpt3
        self.ckpt4 = ckpt4
        for name, gain in self.arguments().items():
            if not isinstance(gain, Schedule):
                check_number(self, name, gain)
        self._gains = (ckpt1, ckpt2, ckpt3, ckpt4)

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        gains = {k: value(gain, at) for k, gain in zip(CKPTS, self._gains, strict=True)}
        gains = {k: gain for k, gain in gains.items() if gain != 1}
        if not gains:
            return s
        dtype = at_least_float32(s)
        along, size = g.sign().mul_(s).to(dtype), g.abs().to(dtype)
        factor: Tensor | float = 1.0
        for k, gain in gains.items():
            here = indicator(k, along, size)
            factor = (factor - here).add_(here, alpha=gain)  # From 1 to 0 to the gain, without rounding.
        return s.mul_(factor)


class Select(Elementwise):
    """d = s on the chosen checkpoints, g elsewhere, the rest included.

    Args:
        ckpts: which checkpoints take SAM's gradient; any subset of 1 to 4, each once.
    """

    def __init__(self, ckpts: int | Sequence[int]) -> None:
        self.ckpts = check_ckpts(self, "ckpts", ckpts)

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        d = g
        masks = split(g, s)
        for ckpt in self.ckpts:
            d = torch.where(masks[ckpt - 1], s, d)
        return d


class Direction(Elementwise):
    r"""d = \|g\| * sign(s): the direction is SAM's, the magnitude the base gradient's."""

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        return g.abs() * s.sign()


class Magnitude(Elementwise):
    r"""d = \|s\| * sign(g): the magnitude is SAM's, the direction the base gradient's."""

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        return s.abs() * g.sign()


class Mix(Elementwise):
    """d = (1 - weight) * g + weight * s.

    Args:
        weight: of s; 1 is SAM, 0 the plain gradient, and above 1 goes beyond s.
    """

    def __init__(self, weight: float) -> None:
        self.weight = check_number(self, "weight", weight)

    @override
    def formula(self, g: Tensor, s: Tensor, at: Progress) -> Tensor:
        # Not by lerp, g + weight * (s - g): at weight 1 this is s, and at 0 it is g, bit for bit.
        return (1 - self.weight) * g + self.weight * s


class SurrogateGap(Combination):
    """GSAM's: d = s - alpha * u, where u is the part of g that is orthogonal to s.

    Args:
        alpha: how much of it is climbed; 0 is SAM.
    """

    def __init__(self, alpha: float = 0.4) -> None:
        self.alpha = check_number(self, "alpha", alpha)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        if self.alpha == 0:
            return
        along = global_dot(grads, perturbed_grads) * inverse(global_dot(perturbed_grads, perturbed_grads))
        # s - alpha * (g - along * s)
        torch._foreach_mul_(list(perturbed_grads), 1 + self.alpha * along)
        torch._foreach_add_(list(perturbed_grads), list(grads), alpha=-self.alpha)


class LookSAMReuse(Combination):
    r"""LookSAM's: on the steps between, d = g + alpha * \|\|g\|\| * u / \|\|u\|\|, with u of the last second pass.

    u is the part of s that is orthogonal to g: what SAM adds, which changes slowly. On steps with a second pass d = s.

    Args:
        alpha: how much of it is added; 0 takes plain steps between.
    """

    stateful = True

    def __init__(self, alpha: float = 0.7) -> None:
        self.alpha = check_number(self, "alpha", alpha)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        along = global_dot(grads, perturbed_grads) * inverse(global_dot(grads, grads))
        u = torch._foreach_sub(list(perturbed_grads), torch._foreach_mul(list(grads), along))
        memory.set("looksam.orthogonal", u)

    @override
    def plain_step_(self, grads: Sequence[Tensor], memory: Memory) -> None:
        kept = memory.get("looksam.orthogonal")
        u = [torch.zeros_like(g) if v is None else v for v, g in zip(kept, grads, strict=True)]
        scale = self.alpha * global_norm(grads) * inverse(global_norm(u))
        torch._foreach_add_(list(grads), torch._foreach_mul(u, scale))


class Chain(Combination):
    """One combination after another: the first makes d of g and s, the next takes that d for s.

    SANER on GSAM is ``Chain([SurrogateGap(0.01), Gains(ckpt2=0.5)])``.

    Args:
        links: the combinations, in order.
    """

    def __init__(self, links: Sequence[Combination]) -> None:
        self.links = tuple(links)
        if not self.links or not all(isinstance(link, Combination) for link in self.links):
            raise ValueError(f"Chain: `links` must be one combination or more, got {links!r}.")

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether any link is."""
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

    Raises:
        ValueError: names the argument and the choices.
    """
    chosen: tuple[Any, ...] = (ckpts,)
    if isinstance(ckpts, Iterable) and not isinstance(ckpts, str):
        chosen = tuple(ckpts)
    known = all(isinstance(ckpt, Integral) and not isinstance(ckpt, bool) and ckpt in CKPTS for ckpt in chosen)
    if not chosen or not known or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"{type(owner).__name__}: `{name}` must be one of 1, 2, 3, 4 or several of them, each once, such as (1, 3);"
            f" got {ckpts!r}."
        )
    return tuple(int(ckpt) for ckpt in chosen)
