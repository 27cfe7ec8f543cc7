"""The wider family: each rule against its paper's formula, in a plain loop and under the Trainer."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.fits import fit
from support.formulas import STEPS, run
from support.named_rules import CASES, Net, counter
from support.nets import float64
from torch import Tensor

from lightning_same import (
    AESAM,
    GSAM,
    SAM,
    USAM,
    WSAM,
    FriendlySAM,
    GradientNormPenalty,
    LookSAM,
    Memory,
    MomentumSAM,
    Progress,
    Rule,
    VaSSO,
    with_sam,
)
from lightning_same.rules.schedules import Cosine, FollowLR, Linear
from lightning_same.rules.timing import Every, RandomSteps
from lightning_same.rules.timing import LastFraction as TailTiming


@pytest.mark.parametrize("name", CASES)
def test_under_the_trainer_twenty_steps_equal_the_formula(name: str) -> None:
    rule, method = CASES[name]
    expected, calls = run(method())
    counter.clear()
    with float64():
        module = with_sam(Net(), rule, check_replay=False)
        fit(module, max_epochs=1)
    for a, b in zip(module.parameters(), expected, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=0, atol=1e-12)
    assert len(counter) == calls
    if not math.isnan(method.passes):
        assert calls == round(method.passes * STEPS)
    else:
        assert STEPS < calls < 2 * STEPS


@pytest.mark.parametrize("name", [name for name in CASES if name != "MomentumSAM"])
def test_a_plain_loop_equals_the_formula(name: str) -> None:
    rule, method = CASES[name]
    expected, _ = run(method())
    module = Net()
    params = list(module.parameters())
    optimizer = module.configure_optimizers()
    memory = Memory(params)
    for step, batch in enumerate(module.train_dataloader()):
        at = Progress(step, total=STEPS)
        grads = list(torch.autograd.grad(module.training_step(batch, 0), params))
        if rule.takes_pass_two(grads, at, memory):
            with rule.perturbed(params, grads, at=at, memory=memory):
                perturbed = torch.autograd.grad(module.training_step(batch, 0), params)
            grads = rule.combine(grads, perturbed, at, memory)
        else:
            rule.plain_step_(grads, memory)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
    for a, b in zip(params, expected, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=0, atol=1e-12)


def weights_of(rule: Rule | None) -> list[Tensor]:
    with float64():
        module = with_sam(Net(), rule)
        fit(module, max_epochs=1)
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize(
    "rule",
    [
        GSAM(0.3, alpha=0),
        WSAM(0.3, gamma=0.5),
        GradientNormPenalty(0.3, alpha=1),
        LookSAM(0.3, k=1),
        FriendlySAM(0.3, sigma=0),
        VaSSO(0.3, theta=1),
        SAM(0.3, timing=Every(1)),
        SAM(0.3, timing=RandomSteps(1)),
        SAM(0.3, timing=TailTiming(1)),
        SAM(Linear(0.3, 0.3)),
        SAM(FollowLR(0.3)),
        AESAM(0.3, start=-1e9, end=-1e9),
    ],
    ids=repr,
)
def test_special_cases_are_sam(rule: Rule) -> None:
    for a, b in zip(weights_of(rule), weights_of(SAM(0.3)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "rule",
    [
        GradientNormPenalty(0.3, alpha=0),
        WSAM(0.3, gamma=0),
        LookSAM(0.0),
        USAM(0.0),
        FriendlySAM(0.0),
        VaSSO(0.0),
        MomentumSAM(0.0),
        SAM(0.3, timing=RandomSteps(0)),
        SAM(0.3, timing=TailTiming(0)),
        SAM(Cosine(0.0)),
        AESAM(0.3, start=1e9, end=1e9),
    ],
    ids=repr,
)
def test_special_cases_are_plain_training(rule: Rule) -> None:
    for a, b in zip(weights_of(rule), weights_of(None), strict=True):
        assert torch.equal(a, b)


def test_momentum_sam_is_seen_by_nobody_else() -> None:
    """Between the passes of MomentumSAM all is at w: batch ends, validation, checkpoint files, an error."""
    inside: list[bool] = []
    values: list[Tensor] = []

    class Watched(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if values:
                inside.append(not torch.equal(self.layers[0].weight, values[-1]))
            if batch_idx == 9:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

        def on_train_batch_start(self, *args: Any) -> None:
            if values and self.trainer.global_step:
                assert torch.equal(self.layers[0].weight, values[-1])

        def on_train_batch_end(self, *args: Any) -> None:
            values.append(self.layers[0].weight.detach().clone())

        def on_exception(self, exception: BaseException) -> None:
            assert torch.equal(self.layers[0].weight, values[-1])

    with float64():
        module = with_sam(Watched(), MomentumSAM(0.3))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(module, max_epochs=1)
    assert inside == [True] * 9
    assert torch.equal(module.layers[0].weight, values[-1])


def test_momentum_sam_needs_a_momentum() -> None:
    class NoMomentum(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"MomentumSAM\(rho=0.3\) perturbs along .* momentum, and SGD has none"):
        fit(with_sam(NoMomentum(), MomentumSAM()))
