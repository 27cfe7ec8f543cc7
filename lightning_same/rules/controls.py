"""Rules that serve as controls of an experiment: they change the step by a set amount, or on random elements.

g is the gradient at w, s the gradient at w + e with e = rho * g / ||g||, d the gradient that the optimizer steps with.
"""

import abc
from collections.abc import Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.pieces import by_kind, flattened, joined, pieces
from lightning_same.gradients.random_masks import Match, draws_of, in_ckpt, random_mask
from lightning_same.gradients.sharding import sum_over_shards
from lightning_same.gradients.tensors import elementwise_, inverse, widened
from lightning_same.rules.base import Rule
from lightning_same.rules.combinations import Combination, check_ckpts
from lightning_same.rules.perturbations import Perturbation
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Schedule
from lightning_same.rules.settings import check_int, check_number
from lightning_same.rules.state import Memory
from lightning_same.rules.timing import Timing


class _OneCheckpoint(Combination, abc.ABC):
    """A combination that is about one checkpoint."""

    def __init__(self, ckpt: int) -> None:
        (self.ckpt,) = check_ckpts(self, "ckpt", ckpt)


class Dose(_OneCheckpoint):
    """d = s + dose * ||s|| * s_k / ||s_k||, where s_k is s on checkpoint k and 0 elsewhere.

    Args:
        ckpt: k, 1 to 4.
        dose: ||d - s|| / ||s||; 0 is SAM, below 0 takes away.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, ckpt: int, dose: float = 0.5) -> None:
        super().__init__(ckpt)
        self.dose = check_number(self, "dose", dose)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        length, inside = sum_over_shards(partial(_squares, self.ckpt), grads, perturbed_grads).sqrt()
        more = self.dose * length * inverse(inside)

        def formula(g: Tensor, s: Tensor) -> Tensor:
            return s.mul_(in_ckpt(self.ckpt, g, s).mul_(more.to(g.device)).add_(1))

        elementwise_(formula, grads, perturbed_grads)


def _squares(ckpt: int, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor]) -> Tensor:
    """The sums of s^2 over all elements and over a checkpoint, of shape (2,). In one read of both lists."""
    device = grads[0].device
    dots = []
    for some_grads, some_perturbed in pieces(grads, perturbed_grads):
        g, s = joined(some_grads).flatten(), widened(joined(some_perturbed).flatten())
        part = in_ckpt(ckpt, widened(g), s).mul_(s)
        dots += [torch.dot(s, s).to(device), torch.dot(part, part).to(device)]
    total = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack(dots).view(-1, 2).sum(dim=0, dtype=total)


class RandomMask(_OneCheckpoint):
    """d = gain * s on a random set of elements that is as large as a checkpoint, and s elsewhere.

    The set is drawn anew at each step among the elements with s != 0, from the seed and the step alone.

    Args:
        ckpt: the checkpoint that it stands for, 1 to 4.
        gain: the factor on the set.
        match: what is as large: ``"count"``, the number of elements, or ``"norm"``, the sum of s^2 over them, up to
            one element.
        seed: of the draws.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, ckpt: int, gain: float = 2.0, match: Match = "count", seed: int = 0) -> None:
        super().__init__(ckpt)
        self.gain = check_number(self, "gain", gain)
        if match not in get_args(Match):
            raise ValueError(f"{type(self).__name__}: `match` must be 'count' or 'norm', got {match!r}.")
        self.match = match
        self.seed = check_int(self, "seed", seed, at_least=0)

    @override
    def combine_(
        self, grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], at: Progress, memory: Memory
    ) -> None:
        draws = draws_of(self.seed, at.step)
        for group in by_kind(grads, perturbed_grads):
            # Views, unless the elements of the two gradients lie in different orders.
            g, s = zip(*(flattened(*pair) or pair for pair in zip(*group, strict=True)), strict=True)
            flat = torch.cat([tensor.reshape(-1) for tensor in s])
            chosen = random_mask(torch.cat([tensor.reshape(-1) for tensor in g]), flat, self.ckpt, self.match, draws)
            factors = torch.split(torch.where(chosen, self.gain, 1.0).to(flat.dtype), [tensor.numel() for tensor in s])
            torch._foreach_mul_(s, [factor.view_as(tensor) for factor, tensor in zip(factors, s, strict=True)])


class CheckpointDose(Rule):
    """SAM that amplifies one checkpoint by a given amount: d = s + dose * ||s|| * s_k / ||s_k||. Two passes.

    s_k is s on checkpoint k and 0 elsewhere. `SAME` with condition c changes s by (c - 1) ||s_k|| / ||s|| of its
    length, which is much on a large checkpoint and little on a small one. Here ||d - s|| is the same fraction of ||s||
    for every checkpoint, so that checkpoints can be compared.

    Use it to compare checkpoints of different sizes.

    Args:
        ckpt: the checkpoint to amplify, 1 to 4.
        dose: ||d - s|| / ||s||; 0 is SAM, below 0 takes away.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> (d,) = CheckpointDose(ckpt=1, dose=1.0).combine([torch.tensor([1.0, 8.0])], [torch.tensor([3.0, 4.0])])
        >>> [round(value, 4) for value in d.tolist()]
        [8.0, 4.0]
    """

    def __init__(
        self,
        ckpt: int = 1,
        dose: float = 0.5,
        rho: float | Schedule = 0.05,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        combination = Dose(ckpt, dose)
        self.ckpt, self.dose = combination.ckpt, combination.dose
        super().__init__(rho, perturbation, combination, timing)


class RandomGains(Rule):
    """A placebo of `SAME`: d = condition * s on a random set as large as a checkpoint, s elsewhere. Two passes.

    The set is drawn anew at each step among the elements with s != 0, from the seed and the step alone: every process
    and a resumed run draw the same. Where parameters are sharded, each shard's set is as large as the checkpoint is in
    that shard.

    Use it as the control of `SAME`: what both do is not due to the checkpoint.

    Args:
        ckpt: the checkpoint that the set stands for, 1 to 4.
        condition: the factor on it; 1 is SAM.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        match: what is as large as in the checkpoint: ``"count"``, the number of elements, or ``"norm"``, the sum of s^2
            over them, up to one element. With ``"norm"`` d is as far from s as `SAME`'s.
        seed: of the draws.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> g, s = torch.ones(4), torch.tensor([2.0, 0.5, 0.5, 0.5])
        >>> (d,) = RandomGains(ckpt=1, condition=3.0).combine([g], [s])
        >>> int((d != s).sum())  # as many elements as are in checkpoint 1
        1
    """

    def __init__(
        self,
        ckpt: int = 1,
        condition: float = 2.0,
        rho: float | Schedule = 0.05,
        match: Match = "count",
        seed: int = 0,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        combination = RandomMask(ckpt, condition, match, seed)
        self.ckpt, self.condition = combination.ckpt, combination.gain
        self.match, self.seed = match, combination.seed
        super().__init__(rho, perturbation, combination, timing)
