"""What every rule of the SAM family does. The named rules are in `sam` and `same`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import compress
from typing import ClassVar

import torch
from torch import Tensor

from lightning_same.gradients.tensors import add_scaled_
from lightning_same.rules.combinations import Combination, Perturbed
from lightning_same.rules.perturbations import Normalized, Perturbation
from lightning_same.rules.perturbed_weights import perturbed_weights
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Schedule, value
from lightning_same.rules.settings import LARGEST_RADIUS, Settings, check_number
from lightning_same.rules.state import Memory
from lightning_same.rules.timing import EveryStep, Timing


class Rule(Settings):
    """One algorithm of the SAM family.

    At weights w with gradient g, pass two takes the gradient s at w + e, where e is ``rho`` times the perturbation's
    direction. The combination makes d of g and s, and the optimizer steps from w with d. The timing chooses the steps
    that do so: they cost two forward-backward passes, the others one. A rule holds settings only and may serve many
    models.

    In plain PyTorch::

        for batch in batches:
            grads = torch.autograd.grad(loss(batch), params)
            with rule.perturbed(params, grads):
                perturbed_grads = torch.autograd.grad(loss(batch), params)
            for param, grad in zip(params, rule.combine(grads, perturbed_grads)):
                param.grad = grad
            optimizer.step()

    A rule that keeps a state from step to step also takes a `Memory`, a rule with a timing or a schedule a
    `Progress`.

    Args:
        rho: radius of the perturbation, in units of the weights (for ASAM: relative to them); from 0 to 1.8e19, whose
            square float32 still holds. With 0 both passes still run, at the same point. A schedule lets it change as
            training goes on.
        perturbation: how e is computed. Default: SAM's `Normalized`.
        combination: how d is made of g and s. Default: SAM's `Perturbed`.
        timing: which steps perturb. Default: `EveryStep`.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation, combination or timing is of the wrong kind.

    Example:
        On the loss 2 x^2 + y^2 / 2 at (2, 6), where the gradient (4 x, y) is (8, 6):

        >>> w = torch.tensor([2.0, 6.0])
        >>> g = [torch.tensor([4.0, 1.0]) * w]
        >>> with Rule(rho=5.0).perturbed([w], g):
        ...     s = [torch.tensor([4.0, 1.0]) * w]
        >>> s
        [tensor([24.,  9.])]
        >>> w
        tensor([2., 6.])
    """

    ahead: ClassVar[bool] = False
    """Whether e is known before the step, from the optimizer's momentum: the only pass is then the one at w + e."""

    hidden_defaults: ClassVar = {"perturbation": Normalized(), "combination": Perturbed(), "timing": EveryStep()}

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        perturbation: Perturbation | None = None,
        combination: Combination | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.rho = (
            rho if isinstance(rho, Schedule) else check_number(self, "rho", rho, at_least=0, at_most=LARGEST_RADIUS)
        )
        self.perturbation = Normalized() if perturbation is None else perturbation
        self.combination = Perturbed() if combination is None else combination
        self.timing = EveryStep() if timing is None else timing
        for name, kind in {"perturbation": Perturbation, "combination": Combination, "timing": Timing}.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{type(self).__name__}: `{name}` must be a {kind.__name__}, got {getattr(self, name)!r}."
                )

    def perturbed(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        rho: Sequence[float] | None = None,
        at: Progress | None = None,
        memory: Memory | None = None,
    ) -> AbstractContextManager[None]:
        """Hold the weights at w + e inside a ``with`` block, without a host sync.

        On leaving, by whatever way, the weights are copied back bit for bit; subtracting e would not be exact.

        Args:
            params: w, moved in place.
            grads: g, the same shapes.
            rho: a radius for each tensor in place of the rule's own. A tensor whose radius is 0 is left alone and stays
                out of the norm.
            at: how far training has come, for a radius that changes. Default: its beginning.
            memory: what the rule keeps from step to step. With a memory, the copy of the weights has the same place
                at every step.

        Raises:
            ValueError: if the rule keeps a state and there is no memory, or if it needs the length of the training.
        """
        at = at or Progress()
        radii = self.radii(len(params), rho, at)
        if not all(radii):
            params, grads, radii = _moving(params, grads, radii)
        memory = self._memory(memory, params).view(params)
        return perturbed_weights(params, memory.scratch(), partial(self._move, params, grads, radii, at, memory))

    @torch.no_grad()
    def combine_(
        self,
        grads: Sequence[Tensor],
        perturbed_grads: Sequence[Tensor],
        at: Progress | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Overwrite s with d in place, without a host sync.

        Args:
            grads: g, read only.
            perturbed_grads: s on entry, d on return.
            at: how far training has come, for gains that change. Default: its beginning.
            memory: what the rule keeps from step to step.

        Raises:
            ValueError: if the rule keeps a state and there is no memory, or if it needs the length of the training.
        """
        if grads:
            self.combination.combine_(grads, perturbed_grads, at or Progress(), self._memory(memory, grads))

    @torch.no_grad()
    def combine(
        self,
        grads: Sequence[Tensor],
        perturbed_grads: Sequence[Tensor],
        at: Progress | None = None,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """The step gradient d, one tensor per parameter; g and s stay as they are.

        Args:
            grads: g.
            perturbed_grads: s, the same shapes.
            at: how far training has come, for gains that change. Default: its beginning.
            memory: what the rule keeps from step to step.

        Raises:
            ValueError: if the rule keeps a state and there is no memory, or if it needs the length of the training.
        """
        step_grads = [grad.clone() for grad in perturbed_grads]
        self.combine_(grads, step_grads, at, memory)
        return step_grads

    @torch.no_grad()
    def plain_step_(self, grads: Sequence[Tensor], memory: Memory | None = None) -> None:
        """Overwrite g with d on a step that does not perturb; most rules leave it as it is.

        Args:
            grads: g on entry, d on return.
            memory: what the rule keeps from step to step.

        Raises:
            ValueError: if the rule keeps a state and there is no memory.
        """
        if grads:
            self.combination.plain_step_(grads, self._memory(memory, grads))

    def takes_pass_two(self, grads: Sequence[Tensor], at: Progress | None = None, memory: Memory | None = None) -> bool:
        """Whether the step perturbs, now that g is known. Only a timing that looks at g waits for the device.

        Args:
            grads: g.
            at: how far training has come. Default: its beginning.
            memory: what the rule keeps from step to step.

        Raises:
            ValueError: if the rule keeps a state and there is no memory, or if it needs the length of the training.
        """
        at = at or Progress()
        return self.timing.active(at) and self.timing.confirmed(grads, at, self._memory(memory, grads))

    @property
    def stateful(self) -> bool:
        """Whether the rule keeps a state from step to step, for which it needs a memory."""
        return self.perturbation.stateful or self.combination.stateful or self.timing.stateful

    @property
    def scale_free(self) -> bool:
        """Whether a multiple of g gives the same e and the same timing, so that a loss scale may stay on it."""
        return self.perturbation.scale_free and not self.timing.stateful

    def radii(self, count: int, rho: Sequence[float] | None = None, at: Progress | None = None) -> list[float]:
        """The radius of each tensor.

        Args:
            count: how many tensors.
            rho: their radii, if they have their own.
            at: how far training has come. Default: its beginning.

        Returns:
            ``rho`` if it is given, else ``count`` times the rule's own radius at this time.

        Example:
            >>> Rule(rho=0.1).radii(2)
            [0.1, 0.1]
        """
        return [value(self.rho, at or Progress())] * count if rho is None else list(rho)

    def _move(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        radii: Sequence[float],
        at: Progress,
        memory: Memory,
    ) -> None:
        """Add e to the weights, of which none has a radius of 0."""
        if params:
            vector, scale, formula, others = self.perturbation.direction(params, grads, memory)
            add_scaled_(params, vector, scale, radii, formula, others, self.perturbation.rounding(at))
            self.perturbation.remember(grads, memory)

    def _memory(self, memory: Memory | None, tensors: Sequence[Tensor]) -> Memory:
        if memory is None and self.stateful:
            raise ValueError(
                f"{self!r} keeps a state from step to step. Make `memory = Memory(params)` once, before the loop,"
                " and pass `memory=memory` to each of its methods."
            )
        return Memory(tensors) if memory is None else memory


def _moving(
    params: Sequence[Tensor], grads: Sequence[Tensor], radii: Sequence[float]
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """The tensors that have a radius, their gradients and their radii."""
    return list(compress(params, radii)), list(compress(grads, radii)), [radius for radius in radii if radius]
