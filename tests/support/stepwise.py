"""Training that goes on batch by batch as it is told to, and a model of it in numpy that knows no Trainer."""

import copy
import itertools
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_same import GSAM, SAM, USAM, FriendlySAM, LookSAM, Rule, VaSSO, with_sam
from support.fits import go_on, trainer
from support.formulas import Arrays, gradient, problem
from support.nets import Plain
from support.speed import ended, in_time

ACCUMULATE = 2
LR, MOMENTUM, DECAY, RHO = 0.05, 0.9, 0.01, 0.3

RULES: dict[str, Rule | None] = {
    "none": None,
    "SAM": SAM(RHO),
    "USAM": USAM(RHO),
    "GSAM": GSAM(RHO, alpha=0.4),
    "VaSSO": VaSSO(RHO, theta=0.4),
    "FriendlySAM": FriendlySAM(RHO, sigma=0.8, keep=0.7),
    "LookSAM": LookSAM(RHO, k=2, alpha=0.7),
}

BATCHES = problem()[1]

PATIENCE = 60.0
"""Seconds that a batch may take on an idle machine."""


class StoppedError(Exception):
    """The fit is ended from outside, as a crash ends it."""


class Fault:
    """To happen in a pass, or in a step's only one. An object: what a module's attributes hold is replayed."""

    in_pass: int | None = None

    def happen(self, now: int) -> None:
        if self.in_pass is not None and now in (0, self.in_pass):
            raise ValueError("in the midst of a step")


class Net(Plain):
    """The network of the formulas, with an addend to its output that is in no optimizer at first.

    Args:
        frozen: whether the first layer is.
        group_rho: the radius of the addend's parameter group, "rule" for the rule's; None if there is no such group.
    """

    source: "Source"

    def __init__(self, frozen: bool, group_rho: float | str | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        for param, value in zip(self.layers.parameters(), problem()[0], strict=True):
            param.data = torch.from_numpy(value.copy())
        self.addend = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.group_rho = group_rho
        self.fault = Fault()
        self.freeze_first(frozen)

    def freeze_first(self, frozen: bool) -> None:
        self.layers[0].requires_grad_(not frozen)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.fault.happen(self.sam_pass)
        if len(batch) == 1:
            return None
        x, y = batch
        return nn.functional.mse_loss(self.layers(x) + self.addend, y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layers.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        if self.group_rho is not None:
            optimizer.add_param_group(group_of(self))
        return optimizer

    def train_dataloader(self) -> Any:
        return self.source

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


def group_of(module: Any) -> dict[str, Any]:
    own = {} if module.group_rho == "rule" else {"rho": module.group_rho}
    return {"params": [module.addend], **own}


class Source:
    """A data loader that waits for its batches."""

    def __init__(self) -> None:
        self.batches: queue.Queue[Any] = queue.Queue()
        self.idle = threading.Event()

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        self.idle.set()
        item = self.batches.get()
        if item is StoppedError:
            raise StoppedError
        return item


class Session:
    """A fit in a thread of its own.

    Args:
        module: with the mixin.
        file: to resume from.
        rank: of this process, which gets batches of its own.
        **options: of the Trainer.
    """

    def __init__(self, module: Any, file: Path | None = None, rank: int = 0, **options: Any) -> None:
        self.module = module
        self.rank = rank
        self.source = module.source = Source()
        self.trainer = trainer(max_epochs=1, accumulate_grad_batches=ACCUMULATE, **options)
        self.error: BaseException | None = None

        def fit() -> None:
            try:
                go_on(self.trainer, module, file)
            except BaseException as error:
                self.error = error
            self.source.idle.set()

        self.thread = threading.Thread(target=fit, daemon=True)
        self.thread.start()
        self.wait()

    def wait(self) -> None:
        """Until the fit asks for a batch, or has ended."""
        assert in_time(self.source.idle.wait, PATIENCE), "the fit does not go on"
        self.source.idle.clear()

    def send(self, number: int | None, spoiled_on: int | None = None) -> None:
        """The batch of this process, by a number; None for one that the training step skips.

        Args:
            number: of the batch.
            spoiled_on: the rank whose batch holds NaN; None for no rank.
        """
        batch: tuple[Tensor, ...] = (None,) if number is None else tensors(number_on(self.rank, number))  # type: ignore[assignment]
        if spoiled_on == self.rank:
            batch = (torch.full_like(batch[0], torch.nan), *batch[1:])
        self.source.batches.put(batch)
        self.wait()

    def fail_in(self, now: int | None) -> None:
        self.module.fault.in_pass = now

    def swap(self, rule: str) -> None:
        self.module.sam = RULES[rule]

    def freeze(self, frozen: bool) -> None:
        self.module.freeze_first(frozen)

    def add_group(self, rho: float | str) -> None:
        self.module.group_rho = rho
        self.module.addend.grad = None
        self.trainer.optimizers[0].add_param_group(group_of(self.module))

    def save(self, file: Path) -> None:
        self.trainer.save_checkpoint(file)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.source.batches.put(StoppedError)
        assert ended(self.thread, PATIENCE)

    @property
    def weights(self) -> Arrays:
        """Outside of a step, where they are at w."""
        assert self.module.sam_pass == 0
        return [param.detach().numpy().copy() for param in [*self.module.layers.parameters(), self.module.addend]]


def session_of(frozen: bool, group_rho: float | str | None, rule: str, file: Path | None = None) -> Session:
    return Session(with_sam(Net(frozen, group_rho), RULES[rule], check_replay=False), file)


def number_on(rank: int, number: int) -> int:
    """Of the batch that a process gets when all are sent one by a number."""
    return (number + 7 * rank) % len(BATCHES)


class Model:
    """What must hold, without a Trainer, autograd or this package: weights, momentum, what rules remember, a window.

    Args:
        processes: how many there are, each with its own batches.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.weights: Arrays = [*(w.copy() for w in problem()[0]), np.zeros(2)]
        self.momentum: dict[int, np.ndarray] = {}
        self.memory: dict[str, dict[int, np.ndarray]] = {"VaSSO": {}, "FriendlySAM": {}, "LookSAM": {}}
        self.window: list[int | None] = []
        self.spoiled = False
        self.rule = "none"
        self.batches = self.steps = 0
        self.opened = False
        self.frozen = False
        self.group_rho: float | str | None = None

    def saved(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))

    def load(self, saved: dict[str, Any]) -> None:
        """As from a file, in which what a window has gathered is not."""
        vars(self).update(copy.deepcopy(saved))
        self.window, self.opened, self.spoiled = [], False, False

    @property
    def inside_a_window(self) -> bool:
        return self.batches % ACCUMULATE != 0

    def rule_of_next(self, rule: str) -> str:
        """The rule of the step that takes the next batch: the module's, unless its window has begun with another."""
        return self.rule if self.opened and self.inside_a_window else rule

    def take(self, batch: int | None, rule: str, spoiled: bool = False) -> None:
        """A batch by its number.

        Args:
            batch: the number; None for one that the training step skips.
            rule: the module's.
            spoiled: whether it holds NaN, for which its step is dropped.
        """
        self.rule, self.opened = self.rule_of_next(rule), True
        self.window.append(batch)
        self.spoiled |= spoiled
        self.batches += 1
        if self.inside_a_window:
            return
        window, self.window = [number for number in self.window if number is not None], []
        if window and not self.spoiled:
            self.step(window)
        self.spoiled = False
        self.steps += 1

    def step(self, window: list[int]) -> None:
        trained = [i for i in range(5) if not (i < 2 and self.frozen) and (i < 4 or self.group_rho is not None)]
        own: dict[int, Any] = {4: self.group_rho} if isinstance(self.group_rho, float) else {}
        radii = {i: own.get(i, RHO) for i in trained}
        moving = [i for i in trained if radii[i]]
        g = self.gradient(self.weights, window, trained)
        d = g
        perturbs = self.rule != "none" and (self.rule != "LookSAM" or self.steps % 2 == 0)
        if perturbs:
            e = self.direction({i: g[i] for i in moving})
            moved = [w + radii[i] * e[i] if i in e else w for i, w in enumerate(self.weights)]
            s = d = self.gradient(moved, window, trained)
            if self.rule == "GSAM":
                along = dot(g, s) / dot(s, s)
                d = {i: s[i] - 0.4 * (g[i] - along * s[i]) for i in trained}
            if self.rule == "LookSAM":
                along = dot(g, s) / dot(g, g)
                self.memory["LookSAM"] |= {i: s[i] - along * g[i] for i in trained}
        elif self.rule == "LookSAM":
            u = {i: self.memory["LookSAM"][i] for i in trained if i in self.memory["LookSAM"]}
            if u:
                scale = 0.7 * dot(g, g) ** 0.5 / dot(u, u) ** 0.5
                d = {i: g[i] + scale * u[i] if i in u else g[i] for i in trained}
        for i in trained:
            grad = d[i] + DECAY * self.weights[i]
            self.momentum[i] = MOMENTUM * self.momentum[i] + grad if i in self.momentum else grad
            self.weights[i] = self.weights[i] - LR * self.momentum[i]

    def direction(self, g: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        if self.rule == "USAM":
            return g
        m, u = self.memory.get(self.rule, {}), g
        if self.rule == "VaSSO":
            m |= {i: 0.6 * m[i] + 0.4 * g[i] if i in m else g[i] for i in g}
            u = {i: m[i] for i in g}
        if self.rule == "FriendlySAM":
            if any(i in m for i in g):
                u = {i: g[i] - 0.8 * m[i] if i in m else g[i] for i in g}
            m |= {i: 0.7 * m[i] + 0.3 * g[i] if i in m else g[i] for i in g}
        norm = dot(u, u) ** 0.5
        return {i: u[i] / norm for i in u}

    def gradient(self, weights: Arrays, window: list[int], of: list[int]) -> dict[int, np.ndarray]:
        """Of a sum over the batches that there are, divided by the number that there may be; a mean over processes."""
        w1, b1, w2, b2, addend = weights
        total: list[Any] = [0.0] * 5
        for number, rank in itertools.product(window, range(self.processes)):
            four = gradient([w1, b1, w2, b2 + addend], BATCHES[number_on(rank, number)])
            total = [a + b / ACCUMULATE / self.processes for a, b in zip(total, [*four, four[3]], strict=True)]
        return {i: total[i] for i in of}


def dot(a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> float:
    return float(sum((a[i] * b[i]).sum() for i in a))


def tensors(number: int) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, BATCHES[number]))
