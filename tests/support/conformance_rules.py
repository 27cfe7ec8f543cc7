"""Rules of the conformance matrix, each written out in plain torch, without the package."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_same import AESAM, GSAM, SAM, USAM, LookSAM, MomentumSAM, Rule, VaSSO

RHO = 0.2


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum(((x * y).sum() for x, y in zip(a, b, strict=True)), torch.zeros(()))


def finite(tensors: list[Tensor]) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)


class ByHand:
    """SAM. Gradients are those of the loss itself where e is made, and may be scaled where d is."""

    def along(self, g: list[Tensor]) -> list[Tensor]:
        """The direction of e, of length 1."""
        norm = dot(g, g).sqrt()
        return [x / norm if norm > 0 else torch.zeros_like(x) for x in g]

    def ahead(self, momenta: list[Tensor | None]) -> list[Tensor] | None:
        """e of pass one, for a rule that knows it before."""
        return None

    def e(self, g: list[Tensor], step: int, total: int) -> list[Tensor] | None:
        """None for a step of one pass."""
        return [RHO * x for x in self.along(g)]

    def d(self, g: list[Tensor], s: list[Tensor]) -> list[Tensor]:
        return s

    def plain(self, g: list[Tensor]) -> list[Tensor]:
        return g


class Unnormalized(ByHand):
    def along(self, g: list[Tensor]) -> list[Tensor]:
        return g


class SurrogateGap(ByHand):
    def d(self, g: list[Tensor], s: list[Tensor]) -> list[Tensor]:
        along = dot(g, s) / dot(s, s)
        return [b - 0.3 * (a - along * b) for a, b in zip(g, s, strict=True)]


class Averaged(ByHand):
    m: list[Tensor] | None = None

    def along(self, g: list[Tensor]) -> list[Tensor]:
        if self.m is None:
            self.m = [x.clone() if finite(g) else torch.zeros_like(x) for x in g]
        elif finite(g):
            self.m = [0.6 * m + 0.4 * x for m, x in zip(self.m, g, strict=True)]
        return super().along(self.m)


class LargeGradients(ByHand):
    mean = variance = 0.0

    def e(self, g: list[Tensor], step: int, total: int) -> list[Tensor] | None:
        square = dot(g, g).item()
        mean = 0.9 * self.mean + 0.1 * square
        variance = 0.9 * self.variance + 0.1 * (square - mean) * (square - mean)
        if math.isfinite(variance):
            self.mean, self.variance = mean, variance
            if square < mean + (-1 + 2 * step / total) * math.sqrt(variance):
                return None
        return super().e(g, step, total)


class Reusing(ByHand):
    u: list[Tensor] | None = None

    def e(self, g: list[Tensor], step: int, total: int) -> list[Tensor] | None:
        return None if step % 2 else super().e(g, step, total)

    def d(self, g: list[Tensor], s: list[Tensor]) -> list[Tensor]:
        if finite([dot(g, s), dot(g, g)]):
            along = dot(g, s) / dot(g, g)
            self.u = [b - along * a for a, b in zip(g, s, strict=True)]
        elif self.u is None:
            self.u = [torch.zeros_like(a) for a in g]
        return s

    def plain(self, g: list[Tensor]) -> list[Tensor]:
        if self.u is None or not dot(self.u, self.u):
            return g
        scale = 0.7 * (dot(g, g) / dot(self.u, self.u)).sqrt()
        return [a + scale * u for a, u in zip(g, self.u, strict=True)]


class AlongMomentum(ByHand):
    def ahead(self, momenta: list[Tensor | None]) -> list[Tensor] | None:
        known = [momentum for momentum in momenta if momentum is not None]
        return [-RHO * x for x in self.along(known)] if known else None

    def e(self, g: list[Tensor], step: int, total: int) -> list[Tensor] | None:
        return None


RULES: dict[str, tuple[Rule, type[ByHand]]] = {
    "SAM": (SAM(RHO), ByHand),
    "USAM": (USAM(RHO), Unnormalized),
    "GSAM": (GSAM(RHO, alpha=0.3), SurrogateGap),
    "VaSSO": (VaSSO(RHO, theta=0.4), Averaged),
    "AESAM": (AESAM(RHO), LargeGradients),
    "LookSAM": (LookSAM(RHO, k=2, alpha=0.7), Reusing),
    "MomentumSAM": (MomentumSAM(RHO), AlongMomentum),
}

OTHER_RULES = [name for name in RULES if name != "SAM"]


def moved(params: list[Any], e: list[Tensor] | None) -> list[Tensor]:
    """Add e to the parameters, and return what they were."""
    before = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param, step in zip(params, e or [], strict=False):
            param += step
    return before


def put_back(params: list[Any], before: list[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, before, strict=True):
            param.copy_(value)
