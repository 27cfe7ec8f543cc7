"""What a comparison of a forward and backward with its replay tells."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-3
"""Gradients that differ by less, relative to their norm, may differ by the order of additions alone."""

SHOWN = 5
"""Paths that a message names."""


class Outcome(NamedTuple):
    """Of a forward and backward.

    Attributes:
        losses: one for each micro-batch.
        grads: one for each parameter; None where there is none.
    """

    losses: Sequence[Tensor]
    grads: Sequence[Tensor | None]

    def equals(self, other: "Outcome") -> bool:
        """Whether both are the same bit for bit; NaN equals NaN."""
        mine, theirs = [*self.losses, *self.grads], [*other.losses, *other.grads]
        return len(mine) == len(theirs) and all(_same(a, b) for a, b in zip(mine, theirs, strict=True))

    def distance(self, other: "Outcome") -> float:
        """The norm of the gradients' difference over the norm of these gradients; inf if only one has a gradient."""
        difference = norm = 0.0
        for mine, theirs in zip(self.grads, other.grads, strict=True):
            if (mine is None) != (theirs is None):
                return float("inf")
            if mine is not None and theirs is not None:
                wide = torch.promote_types(mine.dtype, torch.float64)
                difference += (mine.to(wide) - theirs.to(wide)).abs().square().sum().item()
                norm += mine.to(wide).abs().square().sum().item()
        return 0.0 if difference == 0 else (difference / norm) ** 0.5 if norm else float("inf")


class ReplayReport(NamedTuple):
    """What the replay of a training step showed.

    Attributes:
        exact: whether loss and gradient were the same bit for bit.
        distance: of the gradients, relative to their norm.
        losses: the loss of pass one and of the replay, where they differ.
        state: paths of the state that was not put back.
        rounding_only: whether a second replay differs from the first as little as that from pass one, and by rounding
            only: the kernels are not deterministic.
    """

    exact: bool
    distance: float
    losses: tuple[float, float] | None
    state: Sequence[str]
    rounding_only: bool

    @property
    def is_right(self) -> bool:
        """Whether pass two sees what pass one saw, as far as can be told."""
        return not self.state and (self.exact or self.rounding_only)

    def message(self, name: str) -> str:
        """What to tell the user, for a module of this name."""
        if self.is_right:
            return (
                f"{name}: a replay of training_step differs from it by rounding only ({self.distance:.1e} of the"
                " gradient's norm): the kernels are not deterministic."
            )
        parts = [f"{name}.training_step does not do the same when it is replayed with the same batch and weights."]
        if self.losses is not None:
            parts.append(f"Its loss was {self.losses[0]:.9g}, and {self.losses[1]:.9g} in the replay.")
        elif not self.exact:
            parts.append(f"Its gradient differs by {self.distance:.1e} of its norm.")
        else:
            parts.append("Its loss and gradient are the same, but it changes state twice.")
        if self.state:
            names = ", ".join(f"`{path}`" for path in self.state[:SHOWN])
            more = f" and {len(self.state) - SHOWN} more" if len(self.state) > SHOWN else ""
            parts.append(f"Not put back: {names}{more}.")
        else:
            parts.append("What changes lies outside the module: a global variable, a file, or an object in C code.")
        parts.append(
            "So pass two and the monitors do not see what pass one saw, and what they change stays. Hold it as a"
            " number, tensor, list, dict or generator on the module, or as a buffer; or change it only"
            " `if not lightning_same.replaying()`."
        )
        return " ".join(parts)


class States(NamedTuple):
    """Fingerprints of a module at four moments.

    Attributes:
        start: before pass one.
        left: after pass one.
        put_back: when the start has been put back, before the replay.
        end: when what pass one had left has been put back, after the replay.
    """

    start: Mapping[str, str]
    left: Mapping[str, str]
    put_back: Mapping[str, str]
    end: Mapping[str, str]


def compare(first: Outcome, replays: Sequence[Outcome], states: States) -> ReplayReport:
    """The report on a step.

    State that only its first forward changes, such as a cache, is right if loss and gradient are. What changes at each
    forward and is not put back is not.

    Args:
        first: of pass one.
        replays: one replay, or two where the first one differs.
        states: of the module.
    """
    exact, distance = first.equals(replays[0]), first.distance(replays[0])
    changed = _changed(states.left, states.end)
    if not exact:
        changed |= _changed(states.start, states.put_back)
    losses = [(a.item(), b.item()) for a, b in zip(first.losses, replays[0].losses, strict=True) if not _same(a, b)]
    again = replays[0].distance(replays[-1]) if len(replays) > 1 else float("inf")
    rounding_only = not exact and 0 < again <= ROUNDING and distance <= ROUNDING
    return ReplayReport(exact, distance, losses[0] if losses else None, sorted(changed), rounding_only)


def _changed(one: Mapping[str, str], two: Mapping[str, str]) -> set[str]:
    return {path for path in one.keys() | two.keys() if one.get(path) != two.get(path)}


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    if torch.equal(one, two):
        return True
    return torch.equal(one.isnan(), two.isnan()) and torch.equal(one.nan_to_num(), two.nan_to_num())
