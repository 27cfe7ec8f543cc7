"""The automatic and the manual route, against loops in plain PyTorch."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import differences, fit, trainer, weights
from support.nets import Plain, TwoOptimizers, build, float64
from support.passes import FORCED, PlainSAM, count_passes
from torch import Tensor

from lightning_same import (
    ASAM,
    SAM,
    SAME,
    CheckpointSelect,
    CustomSAME,
    Memory,
    Rule,
    SAMMagnitude,
    SAMMixin,
    VaSSO,
    with_sam,
)
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import FollowLR
from lightning_same.rules.timing import Every

RULES = [SAM(0.3), ASAM(0.5), SAME((1, 4), 2.0, 0.3), CustomSAME(2.0, 0.3), CheckpointSelect((1, 4), 0.3)]


def hand_loop(rule: Rule, epochs: int = 2, accumulate: int = 1) -> list[Tensor]:
    """SAM in plain PyTorch on `Plain`, one gradient over ``accumulate`` batches."""
    module = build(Plain)
    params = list(module.parameters())
    optimizer = module.configure_optimizers()
    step = 0
    for epoch in range(epochs):
        batches = list(module.train_dataloader())
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]

            def gradient(window: Any = window) -> Any:
                loss = sum(module.training_step(batch, 0) / accumulate for batch in window)
                return torch.autograd.grad(loss, params)

            step_grads = grads = gradient()
            at = Progress(step, epoch)
            if rule.timing.active(at):
                with rule.perturbed(params, grads):
                    perturbed = gradient()
                step_grads = rule.combine(grads, perturbed, at)
            for param, grad in zip(params, step_grads, strict=True):
                param.grad = grad
            optimizer.step()
            step += 1
    return weights(module)


@pytest.mark.parametrize("accumulate", [1, 3, 4])
@pytest.mark.parametrize("rule", [*RULES, SAM(0.3, timing=Every(3))], ids=repr)
def test_automatic_route_equals_the_plain_loop(rule: Rule, accumulate: int) -> None:
    with float64():
        expected = hand_loop(rule, accumulate=accumulate)
        module = with_sam(build(Plain), rule)
        made = fit(module, accumulate_grad_batches=accumulate)
    assert made.global_step == 2 * -(-6 // accumulate)
    for a, b in zip(weights(module), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [*RULES, None], ids=repr)
def test_manual_route_equals_the_automatic_bit_for_bit(rule: Rule | None) -> None:
    class Manual(PlainSAM):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.two_pass_step(lambda: Plain.training_step(self, batch, batch_idx), self.optimizers())

    automatic, manual = with_sam(build(Plain), rule), build(Manual)
    manual.sam = rule
    made = fit(automatic), fit(manual)
    assert made[0].global_step == made[1].global_step == 12
    assert differences(weights(automatic), weights(manual)) == []


def test_a_loss_scale_does_not_show() -> None:
    """With a scaler the update is that of bare float16 autocast: the scale goes through both gradients and out."""

    class Bare(PlainSAM):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.autocast("cpu", torch.float16, cache_enabled=False):
                return super().training_step(batch, batch_idx)

    scaled, bare = with_sam(build(Plain), SAME(1, 2.0, 0.3)), with_sam(build(Bare), SAME(1, 2.0, 0.3))
    fit(scaled, precision="16-scaled")
    fit(bare)
    for a, b in zip(weights(scaled), weights(bare), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
        assert not torch.equal(a, torch.zeros_like(a))


@pytest.mark.parametrize("rule", [SAME(1, 2.0, 0.2), VaSSO(0.2), SAM(FollowLR(0.2))], ids=repr)
def test_two_optimizers_equal_the_plain_loop(rule: Rule) -> None:
    """Each has what the rule keeps, and its own learning rate for a radius that follows it."""

    def decay(optimizer: Any) -> None:
        (group,) = optimizer.param_groups
        group["initial_lr"] = group.get("initial_lr", group["lr"])
        group["lr"] *= 0.9 if isinstance(optimizer.optimizer, torch.optim.SGD) else 0.8

    class Manual(SAMMixin, TwoOptimizers):
        sam = rule

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            loss = self.two_pass_step(loss_fn, optimizer)
            assert loss.ndim == 0
            assert not loss.requires_grad
            decay(optimizer)

    class Hand(TwoOptimizers):
        """The same by hand: dropout and BatchNorm replayed, one optimizer's parameters at a time."""

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            plain = optimizer.optimizer
            (group,) = plain.param_groups
            params = group["params"]
            memory = memories.setdefault(plain, Memory(params))
            at = Progress(lr_ratio=group["lr"] / group.get("initial_lr", group["lr"]))
            before = {name: value.clone() for name, value in self.named_buffers()}
            rng = torch.get_rng_state()
            grads = torch.autograd.grad(loss_fn(), params)
            after = {name: value.clone() for name, value in self.named_buffers()}
            end = torch.get_rng_state()
            for name, value in self.named_buffers():
                value.copy_(before[name])
            torch.set_rng_state(rng)
            with rule.perturbed(params, grads, at=at, memory=memory):
                perturbed = torch.autograd.grad(loss_fn(), params)
            for name, value in self.named_buffers():
                value.data.copy_(after[name])
            torch.set_rng_state(end)
            for param, grad in zip(params, rule.combine(grads, perturbed, memory=memory), strict=True):
                param.grad = grad
            optimizer.step()
            decay(optimizer)

    memories: dict[Any, Memory] = {}
    ours, hand = build(Manual), build(Hand)
    made = fit(ours), fit(hand)
    assert made[0].global_step == made[1].global_step == 24
    assert differences(dict(ours.state_dict()), dict(hand.state_dict())) == []


def test_other_gradients_stay_as_pass_one_makes_them() -> None:
    grads: list[Tensor] = []

    class Manual(SAMMixin, TwoOptimizers):
        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.zero_grad()
            self.two_pass_step(loss_fn, optimizer)
            if optimizer is self.optimizers()[0]:
                grads.extend(param.grad.clone() for param in self.generator.parameters())

    plain, sam = build(Manual), build(Manual)
    plain.sam, sam.sam = None, SAM(0.5)
    fit(plain, max_steps=1)
    fit(sam, max_steps=1)
    half = len(grads) // 2
    assert differences(grads[:half], grads[half:]) == []


def test_parameter_groups_have_radii_of_their_own() -> None:
    class Grouped(PlainSAM):
        sam = SAM(0.3)

        def configure_optimizers(self) -> Any:
            first, second = self.layers[0].parameters(), self.layers[2].parameters()
            groups = [{"params": list(first), "rho": 0.0}, {"params": list(second)}]
            return torch.optim.SGD(groups, lr=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.sam_pass == 2:
                moved.append([not torch.equal(a, b) for a, b in zip(weights(self), before[-1], strict=True)])
                e = torch.cat([(a - b).flatten() for a, b in zip(weights(self), before[-1], strict=True)])
                assert e.norm().item() == pytest.approx(0.3)
            else:
                before.append(weights(self))
            return super().training_step(batch, batch_idx)

    moved: list[list[bool]] = []
    before: list[list[Tensor]] = []
    fit(build(Grouped), max_steps=2)
    assert moved == [[False, False, True, True]] * 2


def test_an_optimizers_own_rho_is_not_a_radius() -> None:
    class Ada(PlainSAM):
        sam = FORCED

        def configure_optimizers(self) -> Any:
            return torch.optim.Adadelta(self.parameters(), rho=0.9)

    module, plain = build(Ada), build(Ada)
    plain.sam = None
    fit(module)
    fit(plain)
    assert differences(weights(module), weights(plain)) == []


def test_rule_may_change_between_steps() -> None:
    class Switch(Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.sam = SAM(0.3) if trainer.current_epoch == 1 else None

    module = with_sam(build(Plain), None)
    passes = count_passes(module)
    fit(module, callbacks=[Switch()])
    assert passes == [0] * 6 + [1, 2] * 6


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(
    ("rule", "expected"), [(None, [0] * 6), (SAM(), [1, 2] * 6), (SAM(timing=Every(2)), [1, 2, 0] * 3)], ids=repr
)
def test_passes_are_counted(rule: Rule | None, expected: list[int], manual: bool) -> None:
    class Manual(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.two_pass_step(lambda: Plain.training_step(self, batch, batch_idx), self.optimizers())

    module = with_sam(build(Manual if manual else Plain), rule)
    module.automatic_optimization = not manual
    passes = count_passes(module)
    fit(module, max_epochs=1)
    assert passes == expected
    assert module.sam_pass == 0


def test_a_backward_behind_the_mixin_is_called_in_both_passes() -> None:
    class Custom(Plain):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            calls.append(float(loss.detach()))
            loss.backward(*args, **kwargs)

    calls: list[float] = []
    module = with_sam(build(Custom), SAM(0.3))
    fit(module, max_steps=3)
    assert len(calls) == 6


def test_magnitude_rule_runs() -> None:
    module = with_sam(build(Plain), SAMMagnitude(0.3))
    assert trainer(max_steps=2).fit(module) is None
