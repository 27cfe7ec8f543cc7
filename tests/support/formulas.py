"""The family's formulas from the papers, in numpy with analytic gradients. Nothing here comes from the package."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = list[np.ndarray]


Gradient = Callable[[Arrays], Arrays]


STEPS = 20


def problem(seed: int = 0) -> tuple[Arrays, list[tuple[np.ndarray, np.ndarray]]]:
    """Weights of a 5-4-2 tanh network, and a batch for each step."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape) for shape in [(4, 5), (4,), (2, 4), (2,)]]
    return weights, [(rng.normal(size=(6, 5)), rng.normal(size=(6, 2))) for _ in range(STEPS)]


def gradient(weights: Arrays, batch: tuple[np.ndarray, np.ndarray]) -> Arrays:
    """Of mean squared error, by the chain rule on paper."""
    (w1, b1, w2, b2), (x, y) = weights, batch
    hidden = np.tanh(x @ w1.T + b1)
    out = 2 * (hidden @ w2.T + b2 - y) / y.size
    back = (out @ w2) * (1 - hidden**2)
    return [back.T @ x, back.sum(0), out.T @ hidden, out.sum(0)]


def dot(a: Arrays, b: Arrays) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def norm(a: Arrays) -> float:
    return math.sqrt(dot(a, a))


def times(c: float, a: Arrays) -> Arrays:
    return [c * x for x in a]


def plus(a: Arrays, b: Arrays) -> Arrays:
    return [x + y for x, y in zip(a, b, strict=True)]


def minus(a: Arrays, b: Arrays) -> Arrays:
    return plus(a, times(-1, b))


def unit(a: Arrays) -> Arrays:
    return times(1 / norm(a), a)


class Method:
    """One algorithm: d of the weights, the gradient as a function of them, and how many steps are over."""

    passes = 2.0
    """Gradients per step, on the average over `STEPS`."""

    def __init__(self, rho: float = 0.3) -> None:
        self.rho = rho
        self.calls = 0
        self.momentum: Arrays | None = None

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        raise NotImplementedError


class Plain(Method):
    passes = 1.0

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        return grad(w)


class Sam(Method):
    """e along `direction`, d of `combine`."""

    def direction(self, w: Arrays, g: Arrays) -> Arrays:
        return unit(g)

    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        return s

    def radius(self, t: int) -> float:
        return self.rho

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        g = grad(w)
        s = grad(plus(w, times(self.radius(t), self.direction(w, g))))
        return self.combine(g, s)


class Usam(Sam):
    def direction(self, w: Arrays, g: Arrays) -> Arrays:
        return g


class Friendly(Sam):
    m: Arrays | None = None

    def direction(self, w: Arrays, g: Arrays) -> Arrays:
        u = g if self.m is None else minus(g, times(0.8, self.m))
        self.m = g if self.m is None else plus(times(0.7, self.m), times(0.3, g))
        return unit(u)


class Vasso(Sam):
    m: Arrays | None = None

    def direction(self, w: Arrays, g: Arrays) -> Arrays:
        self.m = g if self.m is None else plus(times(0.6, self.m), times(0.4, g))
        return unit(self.m)


class Gsam(Sam):
    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        cosine = dot(g, s) / (norm(g) * norm(s))
        orthogonal = minus(g, times(norm(g) * cosine, unit(s)))
        return minus(s, times(0.4, orthogonal))


class Wsam(Sam):
    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        # (1 - 2 gamma) / (1 - gamma) g + gamma / (1 - gamma) s with gamma = 0.8
        return plus(times(-3, g), times(4, s))


class Penalty(Sam):
    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        # g + lambda * (s - g) / rho with lambda = 0.7 rho
        return plus(g, times(0.7, minus(s, g)))


class Look(Sam):
    passes = 1.25
    u: Arrays

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        if t % 4 == 0:
            return super().step(w, grad, t)
        g = grad(w)
        return plus(g, times(0.7 * norm(g), unit(self.u)))

    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        cosine = dot(g, s) / (norm(g) * norm(s))
        self.u = minus(s, times(norm(s) * cosine, unit(g)))
        return s


class AeSam(Sam):
    passes = math.nan  # depends on the gradients; counted on both sides
    mean = variance = 0.0

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        g = grad(w)
        square = dot(g, g)
        self.mean = 0.9 * self.mean + 0.1 * square
        self.variance = 0.9 * self.variance + 0.1 * (square - self.mean) ** 2
        c = -1 + 2 * t / STEPS
        if square < self.mean + c * math.sqrt(self.variance):
            return g
        return grad(plus(w, times(self.rho, unit(g))))


class Msam(Method):
    passes = 1.0

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        return grad(w if self.momentum is None else minus(w, times(self.rho, unit(self.momentum))))


class LastFraction(Sam):
    passes = 1.3

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        return super().step(w, grad, t) if t >= 14 else grad(w)


class CosineRho(Sam):
    def radius(self, t: int) -> float:
        return 0.1 + 0.2 * (1 + math.cos(math.pi * t / STEPS)) / 2


class LinearRho(Sam):
    def radius(self, t: int) -> float:
        return 0.3 - 0.2 * t / STEPS


class SanerOnGsam(Gsam):
    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        def damp(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.where((b / a > 0) & (b / a < 1), 0.5 * b, b)

        return [damp(a, b) for a, b in zip(g, super().combine(g, s), strict=True)]


class SanerOnFriendly(Friendly):
    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        return [np.where((b / a > 0) & (b / a < 1), 0.5 * b, b) for a, b in zip(g, s, strict=True)]


class SanerOnVasso(Vasso):
    combine = SanerOnFriendly.combine


def run(method: Method, lr: float = 0.05, mu: float = 0.9, decay: float = 0.01) -> tuple[Arrays, int]:
    """Weights after `STEPS` of SGD with momentum and weight decay, and how many gradients that took."""
    w, batches = problem()
    calls = 0
    for t, batch in enumerate(batches):

        def grad(at: Arrays, batch: Any = batch) -> Arrays:
            nonlocal calls
            calls += 1
            return gradient(at, batch)

        d = plus(method.step(w, grad, t), times(decay, w))
        method.momentum = d if method.momentum is None else plus(times(mu, method.momentum), d)
        w = minus(w, times(lr, method.momentum))
    return w, calls
