"""Pass two sees what pass one saw, on a GPU: masks of every kind, buffers, and plain training at rho = 0."""

from typing import Any

import pytest
import torch
from support.fits import differences

from gpu.machine import DEVICE, REHEARSAL, fit
from gpu.nets import Attentive, CompiledDropout, Convolutional, Noted, Recurrent, WithDropout, made
from lightning_same import SAM, SAME, CheckpointFractionMonitor, Every, GradientNormMonitor, Rule

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("deterministic")]

KINDS = [WithDropout, CompiledDropout, Convolutional, Recurrent, Attentive]


def values(module: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_pass_two_are_those_of_pass_one(kind: type[Noted], precision: str) -> None:
    """At rho = 0 the loss of pass two is that of pass one, bit for bit, if all that is drawn is the same."""
    if REHEARSAL and kind is Recurrent and precision == "16-mixed":
        pytest.skip("not every CPU has an LSTM in float16")
    module = made(kind, SAM(0.0))
    fit(module, precision=precision)
    assert len(module.seen.values) == 24
    for first, second in module.seen.pairs():
        assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_after_steps_of_one_pass(kind: type[Noted]) -> None:
    module = made(kind, SAM(0.0, timing=Every(3)))
    fit(module)
    losses = [value.item() for value in module.seen.values]
    assert len(losses) == 16, "every third of 12 steps takes two passes"
    for start in range(0, 16, 4):
        assert losses[start] == losses[start + 1]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("kind", [Convolutional, WithDropout, Attentive])
def test_a_radius_of_zero_is_plain_training(kind: type[Noted], precision: str, accumulate: int) -> None:
    """Recurrent layers with dropout are left out: their masks are drawn anew."""
    left = []
    for rule in (SAM(0.0), None):
        module = made(kind, rule)
        fit(module, precision=precision, accumulate_grad_batches=accumulate)
        left.append([values(module), torch.get_rng_state(), (torch if REHEARSAL else torch.cuda).get_rng_state()])
    assert differences(*left) == []


@pytest.mark.parametrize("kind", [Convolutional, WithDropout, Attentive])
def test_monitors_leave_no_trace(kind: type[Noted]) -> None:
    left = []
    for monitors in ([CheckpointFractionMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1)], []):
        module = made(kind, None)
        fit(module, callbacks=monitors)
        left.append(values(module))
    assert differences(*left) == []


class Stepping(Noted):
    """Manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.two_pass_step(lambda: Noted.training_step(self, batch, batch_idx), self.optimizers())


def loop(rule: Rule) -> Any:
    """A plain loop on the device."""
    module = made(Noted, None).to(DEVICE)
    params, optimizer = list(module.parameters()), module.configure_optimizers()
    for _ in range(2):
        for batch in module.train_dataloader():
            on_device = [part.to(DEVICE) for part in batch]
            g = torch.autograd.grad(module.training_step(on_device, 0), params)
            with rule.perturbed(params, g):
                s = torch.autograd.grad(module.training_step(on_device, 0), params)
            for param, d in zip(params, rule.combine(g, s), strict=True):
                param.grad = d
            optimizer.step()
    return module


@pytest.mark.parametrize("rule", [SAM(0.3), SAME((1, 4), 2.0, 0.3)], ids=repr)
def test_routes_take_the_same_steps(rule: Rule) -> None:
    expected = values(loop(rule))
    for kind in (Noted, Stepping):
        module = made(kind, rule)
        fit(module)
        for name, value in values(module).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
