"""Twenty steps of training with every feature of the Trainer at once, in numpy with analytic gradients.

Nothing here comes from the package but the rules that are tried: accumulation, gradient clipping, a one-cycle schedule,
a loss scaler that grows and that skips overflows, SGD with momentum and AdamW are written out.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import SAM, SANER, Rule
from lightning_same.rules.schedules import FollowLR
from support import checkpoint_rules, named_rules
from support.formulas import STEPS, Arrays, Gradient, Method, Plain, Sam, gradient, minus, norm, plus, problem, times

MICRO_BATCHES = 3
"""Of each step."""

EPOCHS = 4

CLIP = 0.6
"""Some of the gradients are longer, and some are not."""

PEAK_LR = {"SGD": 0.05, "AdamW": 0.02}


class ByCheckpoint(Method):
    """A rule of `checkpoint_rules`: e, d and the timing are formulas there."""

    def __init__(self, name: str) -> None:
        rule, self.e, self.d, self.active = checkpoint_rules.CASES[name]
        super().__init__(rule.rho)

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        g = grad(w)
        if not self.active(t):
            return g
        return self.combine(g, grad(plus(w, self.e(w, g, [self.rho] * len(w)))))

    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        return [self.d(a, b) for a, b in zip(g, s, strict=True)]


class WarmingUp(Sam):
    """SANER, whose alpha of 0.8 is reached in epoch 3 of 4."""

    def step(self, w: Arrays, grad: Gradient, t: int) -> Arrays:
        self.gain = 1 - 0.8 * min(1, (t // (STEPS // EPOCHS) + 1) / 3)
        return super().step(w, grad, t)

    def combine(self, g: Arrays, s: Arrays) -> Arrays:
        return [np.where((b / a > 0) & (b / a < 1), self.gain * b, b) for a, b in zip(g, s, strict=True)]


class FollowsLR(Sam):
    """The radius falls with the learning rate of `one_cycle`."""

    def radius(self, t: int) -> float:
        return 0.1 + 0.2 * one_cycle(t)


CASES: dict[str, tuple[Rule | None, Callable[[], Method]]] = {
    "plain": (None, Plain),
    **named_rules.CASES,
    **{name: (rule, lambda name=name: ByCheckpoint(name)) for name, (rule, *_) in checkpoint_rules.CASES.items()},
    "SANER warming up": (SANER(0.8, 3, 0.3), WarmingUp),
    "a radius that follows the rate": (SAM(FollowLR(0.3, 0.1)), FollowsLR),
}
del CASES["SAM"]  # Once is enough.
CASES["SAM"] = named_rules.CASES["SAM"]


def one_cycle(t: int) -> float:
    """torch's OneCycleLR over `STEPS`, as a share of its peak: up for 30 percent of them and down, along cosines."""
    low, end, top = 1 / 25, 1 / 25 / 1e4, 0.3 * STEPS - 1
    if t <= top:
        return 1 + (low - 1) * (1 + math.cos(math.pi * t / top)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (t - top) / (STEPS - 1 - top))) / 2


class Sgd:
    """Momentum 0.9 and weight decay 0.01, as torch defines them; steps only where the gradient is finite."""

    def __init__(self) -> None:
        self.momentum: Arrays | None = None

    def step(self, w: Arrays, d: Arrays, lr: float) -> Arrays:
        d = plus(d, times(0.01, w))
        self.momentum = d if self.momentum is None else plus(times(0.9, self.momentum), d)
        return minus(w, times(lr, self.momentum))


class AdamW:
    """Loshchilov and Hutter's, with torch's defaults."""

    def __init__(self) -> None:
        self.t = 0
        self.momentum: Arrays | None = None
        self.square: Arrays = []

    def step(self, w: Arrays, d: Arrays, lr: float) -> Arrays:
        self.t += 1
        if self.momentum is None:
            self.momentum, self.square = times(0, d), times(0, d)
        self.momentum = plus(times(0.9, self.momentum), times(0.1, d))
        self.square = plus(times(0.999, self.square), [0.001 * x**2 for x in d])
        update = [
            (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
            for m, v in zip(self.momentum, self.square, strict=True)
        ]
        return minus(times(1 - lr * 0.01, w), times(lr, update))


OPTIMIZERS: dict[str, Callable[[], Any]] = {"SGD": Sgd, "AdamW": AdamW}


def batches() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The micro-batches of each step."""
    each = [problem(seed)[1] for seed in range(MICRO_BATCHES)]
    return [list(window) for window in zip(*each, strict=True)]


def mean(gradients: list[Arrays]) -> Arrays:
    return [sum(parts) / len(parts) for parts in zip(*gradients, strict=True)]


def by_hand(
    method: Any,
    optimizer: str,
    micro_batch: bool = False,
    dropped: tuple[int, ...] = (),
    clip: float = CLIP,
) -> tuple[Arrays, int]:
    """The weights at the end, and how many gradients of a micro-batch that took.

    Args:
        method: the formula.
        optimizer: "SGD" or "AdamW".
        micro_batch: whether each micro-batch is perturbed by itself.
        dropped: steps that are not taken; what the method has kept in them is forgotten.
        clip: the largest norm of a gradient.
    """
    w, stepper, calls = problem()[0], OPTIMIZERS[optimizer](), 0
    for t, window in enumerate(batches()):
        before = copy.deepcopy(vars(method))

        def grad(at: Arrays, some: Any = window) -> Arrays:
            nonlocal calls
            calls += len(some)
            return mean([gradient(at, batch) for batch in some])

        method.momentum = stepper.momentum
        if micro_batch:
            pairs = [two_gradients(method, w, lambda at, one=one: grad(at, [one]), t) for one in window]
            g, s = (mean([pair[i] for pair in pairs]) for i in (0, 1))
            d = method.combine(g, s)
        else:
            d = method.step(w, grad, t)
        if t in dropped:
            vars(method).clear()
            vars(method).update(before)
            continue
        w = stepper.step(w, times(min(1, clip / (norm(d) + 1e-6)), d), PEAK_LR[optimizer] * one_cycle(t))
    return w, calls


def two_gradients(method: Method, w: Arrays, grad: Gradient, t: int) -> tuple[Arrays, Arrays]:
    """g and s of one micro-batch."""
    if isinstance(method, ByCheckpoint):
        g = grad(w)
        return g, grad(plus(w, method.e(w, g, [method.rho] * len(w))))
    assert isinstance(method, Sam)
    g = grad(w)
    return g, grad(plus(w, times(method.radius(t), method.direction(w, g))))


class Net(pl.LightningModule):
    """The network of the formulas, three micro-batches a step, five steps an epoch.

    Args:
        optimizer: "SGD" or "AdamW".
        bad: by step, what the loss of its second micro-batch is multiplied by, and in which passes.
    """

    def __init__(self, optimizer: str, bad: dict[int, tuple[float, tuple[int, ...]]] | None = None) -> None:
        super().__init__()
        self.optimizer, self.bad = optimizer, bad or {}
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        for param, value in zip(self.parameters(), problem()[0], strict=True):
            param.data = torch.from_numpy(value.copy())
        self.passes = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        seen.append(1)
        loss = nn.functional.mse_loss(self.layers(x), y)
        factor, passes = self.bad.get(self.trainer.global_step, (1.0, ()))
        if batch_idx % MICRO_BATCHES == 1 and getattr(self, "sam_pass", 0) in passes:
            loss = loss * factor
        return loss

    def configure_optimizers(self) -> Any:
        lr = PEAK_LR[self.optimizer]
        if self.optimizer == "SGD":
            made: Any = torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
        else:
            made = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(made, lr, total_steps=STEPS, cycle_momentum=False)
        return [made], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self) -> DataLoader:
        return Windows(self)  # type: ignore[return-value]


class Windows:
    """The micro-batches of an epoch, others in each epoch.

    Args:
        module: knows which epoch it is.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Any]:
        each = len(self) // MICRO_BATCHES
        first = self.module.current_epoch * each
        return iter([tuple(map(torch.from_numpy, one)) for window in batches()[first : first + each] for one in window])

    def __len__(self) -> int:
        return STEPS // EPOCHS * MICRO_BATCHES


seen: list[int] = []
"""One for each forward."""


class ScaledInFloat64(MixedPrecision):
    """A loss scaler without half precision: its scale is a power of 2 and passes through float64 without rounding."""

    # It doubles at every third step that is finite.
    options: ClassVar[dict[str, Any]] = {"init_scale": 2.0**10, "growth_interval": 3}

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", **self.options))

    def autocast_context_manager(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()
