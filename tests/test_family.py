"""The wider family: each rule against its paper's formula, in a plain loop and under the Trainer."""

import math
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from formulas import (
    STEPS,
    AeSam,
    CosineRho,
    Friendly,
    Gsam,
    LastFraction,
    LinearRho,
    Look,
    Method,
    Msam,
    Penalty,
    Sam,
    SanerOnFriendly,
    SanerOnGsam,
    SanerOnVasso,
    Usam,
    Vasso,
    Wsam,
    problem,
    run,
)
from nets import Plain as Plain32
from nets import build, fit, float64
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import (
    AESAM,
    GSAM,
    SAM,
    SANER,
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
from lightning_same.rules.combinations import Chain, Gains, SurrogateGap
from lightning_same.rules.perturbations import Friendly as FriendlyDirection
from lightning_same.rules.perturbations import VarianceSuppressed
from lightning_same.rules.schedules import Cosine, FollowLR, Linear
from lightning_same.rules.timing import Every, RandomSteps
from lightning_same.rules.timing import LastFraction as TailTiming

CASES: dict[str, tuple[Rule, type[Method]]] = {
    "SAM": (SAM(0.3), Sam),
    "USAM": (USAM(0.3), Usam),
    "FriendlySAM": (FriendlySAM(0.3, sigma=0.8, keep=0.7), Friendly),
    "VaSSO": (VaSSO(0.3, theta=0.4), Vasso),
    "GSAM": (GSAM(0.3, alpha=0.4), Gsam),
    "WSAM": (WSAM(0.3, gamma=0.8), Wsam),
    "GradientNormPenalty": (GradientNormPenalty(0.3, alpha=0.7), Penalty),
    "LookSAM": (LookSAM(0.3, k=4, alpha=0.7), Look),
    "AESAM": (AESAM(0.3), AeSam),
    "MomentumSAM": (MomentumSAM(0.3), Msam),
    "tail": (SAM(0.3, timing=TailTiming(0.3)), LastFraction),
    "cosine rho": (SAM(Cosine(0.3, 0.1)), CosineRho),
    "linear rho": (SAM(Linear(0.3, 0.1)), LinearRho),
    "SANER on GSAM": (Rule(0.3, combination=Chain([SurrogateGap(0.4), Gains(ckpt2=0.5)])), SanerOnGsam),
    "SANER on FriendlySAM": (SANER(0.5, rho=0.3, perturbation=FriendlyDirection(0.8, 0.7)), SanerOnFriendly),
    "SANER on VaSSO": (SANER(0.5, rho=0.3, perturbation=VarianceSuppressed(0.4)), SanerOnVasso),
}


class Net(pl.LightningModule):
    """The network of the formulas, one batch a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        self.passes = 0
        for param, value in zip(self.parameters(), problem()[0], strict=True):
            param.data = torch.from_numpy(value.copy())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        counter.append(1)
        return nn.functional.mse_loss(self.layers(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([tuple(map(torch.from_numpy, batch)) for batch in problem()[1]], batch_size=None)


counter: list[int] = []


@pytest.mark.parametrize("name", CASES)
def test_under_the_trainer_twenty_steps_equal_the_formula(name: str) -> None:
    rule, method = CASES[name]
    expected, calls = run(method())
    counter.clear()
    with float64():
        module = with_sam(Net(), rule)
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


def test_chance_is_fair_and_depends_on_seed_and_step_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draws = [RandomSteps(0.3).active(Progress(step)) for step in range(5000)]
    assert draws == [RandomSteps(0.3).active(Progress(step)) for step in range(5000)]
    assert draws != [RandomSteps(0.3, seed=1).active(Progress(step)) for step in range(5000)]
    assert sum(draws) == pytest.approx(1500, abs=130)  # four standard deviations
    assert torch.equal(state, torch.get_rng_state())


def test_a_radius_that_follows_the_learning_rate() -> None:
    class Decays(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=10)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            seen.append(trainer.callback_metrics["sam/rho"].item())

    from nets import RowLogger

    logger = RowLogger()
    with float64():
        module = with_sam(Decays(), SAM(FollowLR(0.3, 0.1)))
        fit(module, max_epochs=1, callbacks=[Watch()], logger=logger)
    expected = [0.1 + 0.2 * (1 - 0.5 * min(step, 10) / 10) for step in range(STEPS)]
    assert seen == pytest.approx(expected)
    rows = [(step, row["sam/rho"]) for step, row in logger.rows if "sam/rho" in row]
    assert rows == [(step, pytest.approx(value)) for step, value in enumerate(expected)]


def test_a_constant_radius_is_not_logged() -> None:
    made = fit(with_sam(Net().float(), None), max_epochs=1, max_steps=0)
    assert "sam/rho" not in made.callback_metrics


@pytest.mark.parametrize("rule", [SAM(0.3, timing=TailTiming(0.3)), SAM(Cosine(0.3)), AESAM(0.3)], ids=repr)
def test_a_rule_that_needs_the_length_of_training_says_so_before_the_first_step(rule: Rule) -> None:
    module = with_sam(Net(), rule)
    counter.clear()
    with float64(), pytest.raises(ValueError, match=r"needs the length of the training: give the Trainer `max_epochs`"):
        fit(module, max_epochs=-1)
    assert counter == []


@pytest.mark.parametrize("rule", [FriendlySAM(), VaSSO(), LookSAM(), AESAM()], ids=repr)
def test_a_rule_that_remembers_asks_for_a_memory(rule: Rule) -> None:
    w = [torch.ones(2)]
    assert rule.stateful
    with pytest.raises(ValueError, match=r"Make `memory = Memory\(params\)` once"):
        rule.perturb_(w, w)
    with pytest.raises(ValueError, match="carries something from step to step"):
        rule.combine(w, w)


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

    with pytest.raises(ValueError, match=r"MomentumSAM\(rho=0.3\) looks along .* momentum, and SGD has none"):
        fit(with_sam(NoMomentum(), MomentumSAM()))


# --- a peer ---

# It accumulates the norm in float32 and adds 1e-12 to it; hence the tolerance.
PEER = {"rtol": 0, "atol": 1e-6}


def peer(name: str, module: Net, **options: Any) -> list[Tensor]:
    """The same problem under pytorch_optimizer's implementation."""
    peers = pytest.importorskip("pytorch_optimizer")
    params = list(module.parameters())
    sgd: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    if name == "GSAM":
        base = torch.optim.SGD(params, **sgd)
        optimizer = peers.GSAM(params, base, module, SimpleNamespace(step=lambda: 0.3), **options)
    elif name == "WSAM":
        optimizer = peers.WSAM(module, params, torch.optim.SGD, rho=0.3, **sgd, **options)
    else:
        optimizer = getattr(peers, name)(params, torch.optim.SGD, rho=0.3, **sgd, **options)
    for batch in module.train_dataloader():

        @torch.enable_grad()
        def closure(batch: Any = batch) -> Any:
            optimizer.zero_grad()
            loss = module.training_step(batch, 0)
            loss.backward()
            return (loss, loss) if name == "GSAM" else loss

        closure()
        optimizer.step(closure)
    return params


class OneTensor(Net):
    """All parameters in one tensor: the peer's LookSAM takes norms and projections tensor by tensor, the paper's global
    formula over all of them. (It also runs both passes on every step, where the method saves 1 - 1/k of them.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Tanh())
        self.layers[0].weight.data = torch.from_numpy(problem()[0][0][:2].copy())


@pytest.mark.parametrize(
    ("rule", "name", "options", "kind"),
    [
        (SAM(0.3), "SAM", {}, Net),
        # Its alpha is GSAM's; under DDP it perturbs by each rank's own gradient.
        (GSAM(0.3, alpha=0.4), "GSAM", {"alpha": 0.4}, Net),
        # By default it adds the sharpness after the base step; the coupled form is asked for.
        (WSAM(0.3, gamma=0.8), "WSAM", {"gamma": 0.8, "decouple": False}, Net),
        (FriendlySAM(0.3, sigma=0.8, keep=0.7), "FriendlySAM", {"sigma": 0.8, "lmbda": 0.7}, Net),
        (LookSAM(0.3, k=4, alpha=0.7), "LookSAM", {"k": 4, "alpha": 0.7}, OneTensor),
    ],
    ids=["SAM", "GSAM", "WSAM", "FriendlySAM", "LookSAM"],
)
def test_a_maintained_peer_agrees(rule: Rule, name: str, options: dict[str, Any], kind: type[Net]) -> None:
    with float64():
        ours, theirs = with_sam(kind(), rule), kind()
        fit(ours, max_epochs=1)
    for a, b in zip(ours.parameters(), peer(name, theirs, **options), strict=True):
        torch.testing.assert_close(a, b, **PEER)


@pytest.mark.parametrize("rule", [FriendlySAM(0.1), VaSSO(0.1), LookSAM(0.1, k=2)], ids=repr)
def test_an_overflow_that_the_scaler_skips_is_not_remembered(rule: Rule) -> None:
    overflows: list[bool] = []

    class Overflows(Plain32):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * 1e38 if batch_idx == 2 else loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            overflows.append(not all(param.grad.isfinite().all() for param in self.parameters()))

    module = with_sam(build(Overflows), rule)
    fit(module, precision="16-scaled")
    assert overflows.count(True) == 2
    assert all(param.isfinite().all() for param in module.parameters())


def test_a_memory_keeps_what_it_had_where_a_value_is_not_finite() -> None:
    params = [torch.zeros(2), torch.zeros(3)]
    memory = Memory(params)
    memory.set("m", [torch.full((2,), math.inf), torch.ones(3)])
    assert all(torch.equal(m, torch.zeros_like(m)) for m in memory.get("m") if m is not None)
    memory.set("m", [torch.ones(2), torch.ones(3)])
    memory.set("m", [torch.ones(2), torch.full((3,), math.nan)])
    assert all(torch.equal(m, torch.ones_like(m)) for m in memory.get("m") if m is not None)
    assert memory.view(params[1:]).get("m")[0] is memory.get("m")[1]
    assert memory.view([torch.zeros(2)]).get("m") == [None]
