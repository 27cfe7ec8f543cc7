"""The losses at w and at w + e, by each route, precision and autocast of the user's own, beside a loop by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_same import SAM, SAMMixin, TwoPassOptions
from support.fits import fit
from support.nets import Plain, build

RHO = 2.0
SCALE = 2.0**10
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WEIGHTS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
TOLERANCE = {"32-true": 1e-5, "64-true": 1e-10, "16-mixed": 2e-3, "bf16-mixed": 1e-2, "bf16-true": 1e-2}
"""Of a loss, relative."""


class Case(NamedTuple):
    """
    precision: the Trainer's.
    route: "automatic", "manual" or "plain loop".
    autocast: where the user has one in bfloat16: "none", "around" both passes and everything, or "inside" the loss.
    """

    precision: str
    route: str
    autocast: str


CASES = [
    Case(*case) for case in product(TOLERANCE, ["automatic", "manual", "plain loop"], ["none", "around", "inside"])
]


class Losses:
    """Of all passes. No list of the module's own, which would be put back after pass two."""

    def __init__(self) -> None:
        self.values: list[float] = []


class Noted(SAMMixin, Plain):
    """Notes the loss of every pass."""

    def __init__(self, case: Case, device: str) -> None:
        super().__init__()
        self.case, self.kind, self.seen = case, device, Losses()
        self.sam = SAM(RHO)
        self.automatic_optimization = case.route != "manual"

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16) if self.case.autocast == "inside" else nullcontext():
            out = self(x.to(self.layers[0].weight.dtype))
            loss = nn.functional.cross_entropy(out if out.dtype == torch.float64 else out.float(), y)
        self.seen.values.append(loss.item())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.automatic_optimization:
            return self.loss(*batch)
        self.two_pass_step(lambda: self.loss(*batch), self.optimizers())
        return None


def made(case: Case, device: str) -> Noted:
    module = build(Noted, case, device)
    module.two_pass = TwoPassOptions(check_replay=False)
    return module


def around(case: Case, device: str) -> Any:
    return torch.autocast(device, torch.bfloat16) if case.autocast == "around" else nullcontext()


def mixed(case: Case, device: str) -> Any:
    """The precision's own autocast."""
    return torch.autocast(device, DTYPES[case.precision]) if case.precision in DTYPES else nullcontext()


def pairs(losses: list[float]) -> list[tuple[float, float]]:
    """L(w) and L(w + e) of each step."""
    return list(zip(losses[::2], losses[1::2], strict=True))


def by_route(case: Case, device: str = "cpu") -> list[tuple[float, float]]:
    """What this package does."""
    module = made(case, device)
    if case.route == "plain loop":
        with around(case, device):
            _loop(module, case, device, _perturbed, lambda: mixed(case, device))
    else:
        scaled = case.precision == "16-mixed" and device == "cpu"
        accelerator = {"accelerator": {"cuda": "gpu"}.get(device, device)}
        with around(case, device):
            fit(module, max_epochs=1, precision="16-scaled" if scaled else case.precision, **accelerator)
    return pairs(module.seen.values)


def by_hand(case: Case, device: str = "cpu") -> list[tuple[float, float]]:
    """The same formula in a loop whose passes have autocast contexts of their own, so that none keeps weights."""
    module = made(case, device)
    loss = module.loss

    def alone(x: Tensor, y: Tensor) -> Tensor:
        with around(case, device), mixed(case, device):
            return loss(x, y)

    module.loss = alone
    _loop(module, case, device, _moved, nullcontext)
    return pairs(module.seen.values)


def _loop(module: Noted, case: Case, device: str, perturbed: Any, context: Callable[[], Any]) -> None:
    module.to(device, WEIGHTS.get(case.precision, torch.float32))
    scale = SCALE if case.precision == "16-mixed" else 1.0
    params, optimizer = list(module.parameters()), module.configure_optimizers()
    for batch in module.train_dataloader():
        x, y = (part.to(device) for part in batch)
        with context():
            g = torch.autograd.grad(module.loss(x, y) * scale, params)
            with perturbed(params, g):
                s = torch.autograd.grad(module.loss(x, y) * scale, params)
        for param, grad in zip(params, s, strict=True):
            param.grad = grad / scale
        optimizer.step()


def _perturbed(params: list[Tensor], grads: list[Tensor]) -> Any:
    return SAM(RHO).perturbed(params, grads)


@contextmanager
def _moved(params: list[Tensor], grads: list[Tensor]) -> Iterator[None]:
    """SAM's e by hand."""
    saved = [param.detach().clone() for param in params]
    norm = sum(grad.double().square().sum() for grad in grads).sqrt()
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param.copy_(param.double() + RHO * grad.double() / norm)
    try:
        yield
    finally:
        with torch.no_grad():
            for param, value in zip(params, saved, strict=True):
                param.copy_(value)


def check(case: Case, device: str = "cpu") -> None:
    ours, hand = by_route(case, device), by_hand(case, device)
    assert len(ours) == len(hand) == 6
    for (at_w, ahead), (hand_at_w, hand_ahead) in zip(ours, hand, strict=True):
        assert abs(at_w - hand_at_w) <= TOLERANCE[case.precision] * hand_at_w
        assert abs(ahead - hand_ahead) <= TOLERANCE[case.precision] * hand_ahead
        # The two are further apart than that tolerance: w is not taken for w + e.
        assert abs(ahead - at_w) > 3 * TOLERANCE[case.precision] * at_w
