"""Where pass two looks: the direction of the perturbation e, for a radius of 1."""

import abc
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.tensors import global_norm, inverse
from lightning_same.rules.settings import Settings, check_number
from lightning_same.rules.state import Memory


class Ascent(NamedTuple):
    """e = rho * scale * vector.

    Attributes:
        vector: one tensor per parameter; may be the gradients themselves, so it is read only.
        scale: a scalar tensor that the whole vector is multiplied by.
    """

    vector: list[Tensor]
    scale: Tensor


class Perturbation(Settings, abc.ABC):
    """The direction in which the weights are perturbed before pass two. The radius rho belongs to the rule."""

    stateful: ClassVar[bool] = False
    """Whether it carries something from step to step, for which it needs a memory."""

    scale_free: ClassVar[bool] = True
    """Whether a multiple of g gives the same direction, so that a loss scale may stay on it."""

    @abc.abstractmethod
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        """The direction at w.

        Args:
            params: w, the tensors to be perturbed.
            grads: g at w, the same shapes.
            memory: what this perturbation carries from step to step.

        Returns:
            The direction; a gradient of zero gives zero.
        """


class Normalized(Perturbation):
    r"""SAM's: g / \|\|g\|\|, one L2 norm over all perturbed parameters.

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021.
    """

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return unit(grads)


class Adaptive(Perturbation):
    r"""ASAM's: T^2 g / \|\|T g\|\| with T = \|w\| + eta, elementwise.

    It does not change when weights are rescaled in a way that leaves the network's function as it is; good radii are
    about ten times SAM's.

    Args:
        eta: keeps weights near 0 movable. Default: 0.01, as in the authors' code.

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
        ICML 2021.
    """

    def __init__(self, eta: float = 0.01) -> None:
        self.eta = check_number(self, "eta", eta, at_least=0)

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        vector = list(torch._foreach_abs(list(params)))
        torch._foreach_add_(vector, self.eta)
        scaled = torch._foreach_mul(vector, list(grads))
        scale = inverse(global_norm(scaled))
        torch._foreach_mul_(vector, scaled)
        return Ascent(vector, scale)


class Unnormalized(Perturbation):
    """USAM's: g itself, so that e shrinks with the gradient.

    References:
        Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization, ICML 2022.
    """

    scale_free = False

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return Ascent(
            list(grads),
            torch.ones((), dtype=torch.promote_types(torch.float32, grads[0].dtype), device=grads[0].device),
        )


class Friendly(Perturbation):
    r"""FriendlySAM's: u / \|\|u\|\| with u = g - sigma * m, and m the moving average of g before this step.

    What this batch adds to the average gradient, that is; the first step takes g.

    Args:
        sigma: how much of the average is taken away; 0 is SAM.
        keep: weight of the past in the average, from 0 to 1.

    References:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024.
    """

    stateful = True
    scale_free = False

    def __init__(self, sigma: float = 1.0, keep: float = 0.9) -> None:
        self.sigma = check_number(self, "sigma", sigma)
        self.keep = check_number(self, "keep", keep, at_least=0, at_most=1)

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        former = memory.get("friendly.average")
        vector = [g if m is None else g - self.sigma * m for g, m in zip(grads, former, strict=True)]
        memory.average("friendly.average", grads, self.keep)
        return unit(vector)


class VarianceSuppressed(Perturbation):
    r"""VaSSO's: m / \|\|m\|\| with m = (1 - theta) * m + theta * g, which begins with the first g.

    Args:
        theta: weight of this step's gradient, above 0 and at most 1; 1 is SAM. Default: 0.2, as in SANER's
            experiments.

    References:
        Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023.
    """

    stateful = True
    scale_free = False

    def __init__(self, theta: float = 0.2) -> None:
        self.theta = check_number(self, "theta", theta, above=0, at_most=1)

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return unit(memory.average("vasso.average", grads, 1 - self.theta))


class MomentumAscent(Perturbation):
    r"""Momentum-SAM's: -v / \|\|v\|\|, where v, the optimizer's momentum, takes the place of g.

    References:
        Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, 2024.
    """

    @override
    def direction(self, params: Sequence[Tensor], grads: Sequence[Tensor], memory: Memory) -> Ascent:
        return Ascent(list(grads), -inverse(global_norm(grads)))


def unit(vector: Sequence[Tensor]) -> Ascent:
    """The vector over its norm."""
    return Ascent(list(vector), inverse(global_norm(vector)))
