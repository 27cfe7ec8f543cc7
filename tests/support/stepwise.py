"""Training that goes on batch by batch as it is told to, and a model of it in numpy that knows no Trainer."""

import copy
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_same import GSAM, SAM, USAM, FriendlySAM, LookSAM, Rule, VaSSO, with_sam
from support.fits import LIGHTNING, trainer
from support.formulas import Arrays, gradient, problem
from support.nets import Plain
from support.speed import slowness

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
    """

    def __init__(self, module: Any, file: Path | None = None) -> None:
        self.module = module
        self.source = module.source = Source()
        self.trainer = trainer(max_epochs=1, accumulate_grad_batches=ACCUMULATE)
        self.error: BaseException | None = None
        options: dict[str, Any] = {} if file is None or LIGHTNING < (2, 6) else {"weights_only": True}

        def fit() -> None:
            try:
                self.trainer.fit(module, ckpt_path=file, **options)
            except BaseException as error:
                self.error = error
            self.source.idle.set()

        self.thread = threading.Thread(target=fit, daemon=True)
        self.thread.start()
        self.wait()

    def wait(self) -> None:
        """Until the fit asks for a batch, or has ended."""
        assert self.source.idle.wait(PATIENCE * slowness()), "the fit does not go on"
        self.source.idle.clear()

    def send(self, batch: Any) -> None:
        self.source.batches.put(batch)
        self.wait()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.source.batches.put(StoppedError)
        self.thread.join(PATIENCE * slowness())
        assert not self.thread.is_alive()


def session_of(model: "Model", rule: str, file: Path | None = None) -> Session:
    return Session(with_sam(Net(model.frozen, model.group_rho), RULES[rule], check_replay=False), file)


class Model:
    """What must hold, without a Trainer, autograd or this package: weights, momentum, what rules remember, a window."""

    def __init__(self) -> None:
        self.weights: Arrays = [*(w.copy() for w in problem()[0]), np.zeros(2)]
        self.momentum: dict[int, np.ndarray] = {}
        self.memory: dict[str, dict[int, np.ndarray]] = {"VaSSO": {}, "FriendlySAM": {}, "LookSAM": {}}
        self.window: list[int | None] = []
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
        self.window, self.opened = [], False

    @property
    def inside_a_window(self) -> bool:
        return self.batches % ACCUMULATE != 0

    def take(self, batch: int | None, rule: str) -> None:
        """A batch by its number; None for one that the training step skips."""
        if not self.opened or not self.inside_a_window:
            self.rule, self.opened = rule, True
        self.window.append(batch)
        self.batches += 1
        if self.inside_a_window:
            return
        window, self.window = [number for number in self.window if number is not None], []
        if window:
            self.step(window)
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
        """Of a sum over the batches that there are, divided by the number that there may be."""
        w1, b1, w2, b2, addend = weights
        total: list[Any] = [0.0] * 5
        for number in window:
            four = gradient([w1, b1, w2, b2 + addend], BATCHES[number])
            total = [a + b / ACCUMULATE for a, b in zip(total, [*four, four[3]], strict=True)]
        return {i: total[i] for i in of}


def dot(a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> float:
    return float(sum((a[i] * b[i]).sum() for i in a))


def tensors(number: int) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, BATCHES[number]))
