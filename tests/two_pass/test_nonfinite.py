"""Gradients with an inf or NaN: propagated as Lightning does, or the step dropped, on all ranks."""

import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from support.fits import RowLogger, differences, fit, go_on, trainer
from support.nets import Plain, build, float64
from support.ranks import Ranks
from torch import Tensor, nn

from lightning_same import (
    AESAM,
    GSAM,
    SAM,
    SAME,
    SANER,
    FriendlySAM,
    LookSAM,
    MomentumSAM,
    Rule,
    TwoPassOptions,
    VaSSO,
    with_sam,
)
from lightning_same.rules.combinations import Perturbed
from lightning_same.rules.perturbations import VarianceSuppressed

BAD = 3
"""The step at which it happens."""


class Faulty(Plain):
    """Its loss is not finite at step ``BAD``, in the passes and on the rank given."""

    def __init__(self, passes: tuple[int, ...] = (), rank: int = 0, bad: float = math.nan) -> None:
        super().__init__()
        self.passes, self.rank, self.bad = passes, rank, bad

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step == BAD and self.sam_pass in self.passes and self.global_rank == self.rank:
            # The weights, too, take part: the gradient is as bad as the loss.
            loss = loss * self.bad
        return loss


class Without(Plain):
    """Plain training that leaves step ``BAD`` out, but counts it."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        if self.trainer.global_step == BAD:
            closure()
            self.zero_grad()
            closure = None
        optimizer.step(closure)


class Look(Callback):
    """Weights, optimizer state and the rule's memory around step ``BAD``."""

    def __init__(self) -> None:
        self.before: Any = None
        self.after: Any = None

    def state(self, trainer: Any, module: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder) / "now.ckpt")
        memory = self.saved.get("lightning_same", {}).get("memories", [])
        return copy_of([self.saved["state_dict"], self.saved["optimizer_states"], memory])

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint  # On every rank, of which the first alone writes it.

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == BAD:
            self.before = self.state(trainer, module)

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step == BAD + 1:
            self.after = self.state(trainer, module)


def copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copy_of(item) for key, item in value.items()}
    return [copy_of(item) for item in value] if isinstance(value, list | tuple) else value


RULES = [SAM(0.3), SAME((1, 4), 2.0, 0.3), GSAM(0.2, 0.3), FriendlySAM(0.3), VaSSO(0.3), LookSAM(0.3, k=2), AESAM(0.3)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("passes", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_skip_drops_the_step(rule: Rule, passes: tuple[int, ...], bad: float) -> None:
    look, logger = Look(), RowLogger()
    module = with_sam(build(Faulty, (*passes, *(0 for p in passes if p == 1)), bad=bad), rule, nonfinite="skip")
    made = fit(module, callbacks=[look], logger=logger)
    happened = made.callback_metrics["sam/skipped_steps"]
    # LookSAM takes one pass at that step; VaSSO climbs along an average that g cannot spoil.
    unharmed = (passes == (2,) and isinstance(rule, LookSAM)) or (passes == (1,) and isinstance(rule, VaSSO))
    assert happened == (0 if unharmed else 1)
    assert made.global_step == 12
    assert all(param.isfinite().all() for param in module.parameters())
    if happened:
        assert differences(look.before, look.after) == []
        counts = [row["sam/skipped_steps"] for _, row in logger.rows if "sam/skipped_steps" in row]
        assert counts == [0.0] * BAD + [1.0] * (12 - BAD)


@pytest.mark.parametrize("passes", [(1,), (2,)])
def test_propagate_does_what_lightning_does(passes: tuple[int, ...]) -> None:
    """The optimizer steps with it; w was at w for that."""
    stepped: list[Tensor] = []

    class Before(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            self.w = [param.detach().clone() for param in module.parameters()]

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if trainer.global_step == BAD:
                assert differences(self.w, [param.detach() for param in module.parameters()]) == []
                stepped.extend(param.grad for param in module.parameters())

    module = with_sam(build(Faulty, passes), SAM(0.3))
    module.two_pass = TwoPassOptions()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, callbacks=[Before()], max_steps=BAD + 1)
    # The radius is looked at on the first step alone, where the host waits for it.
    assert not [one for one in caught if "Take a smaller radius" in str(one.message)]
    assert len(stepped) == 4
    assert all(grad.isnan().all() for grad in stepped)
    assert all(param.isnan().all() for param in module.parameters())


def test_a_rule_that_looks_ahead_skips_too() -> None:
    module = with_sam(build(Faulty, (0, 1)), MomentumSAM(0.3), nonfinite="skip")
    made = fit(module)
    assert made.callback_metrics["sam/skipped_steps"] == 1
    assert all(param.isfinite().all() for param in module.parameters())


def test_skipping_is_leaving_the_step_out() -> None:
    """The rest of training is that of a run in which that batch never stepped."""

    class Out(Without):
        pass

    skipped = with_sam(build(Faulty, (1, 2)), SAM(0.0), nonfinite="skip")
    left_out = build(Out)
    fit(skipped)
    fit(left_out)
    assert differences(dict(skipped.state_dict()), dict(left_out.state_dict())) == []


def test_a_micro_batch_spoils_its_window() -> None:
    class OneOfThree(Faulty):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = Plain.training_step(self, batch, batch_idx)
            return loss * self.bad if batch_idx == 4 and self.current_epoch == 0 else loss

    for accumulate in ("window", "micro_batch"):
        module = with_sam(build(OneOfThree), SAM(0.3), nonfinite="skip", accumulate=accumulate)
        made = fit(module, accumulate_grad_batches=3)
        assert made.callback_metrics["sam/skipped_steps"] == 1
        assert all(param.isfinite().all() for param in module.parameters())


def test_the_count_goes_on_from_a_checkpoint_file(tmp_path: Path) -> None:
    first = fit(with_sam(build(Faulty, (1,)), SAM(0.3), nonfinite="skip"), max_epochs=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    second = trainer(max_epochs=2)
    go_on(second, with_sam(build(Plain), SAM(0.3), nonfinite="skip"), tmp_path / "one.ckpt")
    assert second.callback_metrics["sam/skipped_steps"] == 1


def test_a_loss_scaler_skips_by_itself() -> None:
    """The scaler must see the overflow, to lower its scale; nothing says that we skip."""
    module = with_sam(build(Faulty, (2,), bad=math.inf), SAM(0.3), nonfinite="skip")
    made = fit(module, precision="16-scaled")
    assert "sam/skipped_steps" not in made.callback_metrics
    assert made.precision_plugin.scaler.get_scale() < 2.0**10 * 4
    assert all(param.isfinite().all() for param in module.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_is_dropped_for_its_base_gradient_alone(bad: float) -> None:
    """VaSSO's e comes from an average that g cannot spoil, so that s is finite; and d of SANER is made of both."""
    rule = SANER(0.5, rho=0.3, perturbation=VarianceSuppressed(0.4))
    module = with_sam(build(Faulty, (1,), bad=bad), rule, nonfinite="skip")
    assert fit(module).callback_metrics["sam/skipped_steps"] == 1
    assert all(param.isfinite().all() for param in module.parameters())


class Counted(Perturbed):
    """Notes in the memory each step that it has made, whatever becomes of it."""

    stateful = True
    needs_grads = True

    def combine_(self, grads: Any, perturbed_grads: Any, at: Any, memory: Any) -> None:
        memory.numbers["made"] = memory.numbers.get("made", 0.0) + 1


def test_what_a_combination_has_kept_of_a_dropped_step_is_forgotten() -> None:
    look = Look()
    fit(with_sam(build(Faulty, (2,)), Rule(0.3, combination=Counted()), nonfinite="skip"), callbacks=[look])
    assert look.before[2][0]["numbers"] == look.after[2][0]["numbers"] == {"made": BAD}


def train(passes: tuple[int, ...], rank: int, options: dict[str, Any]) -> Any:
    look = Look()
    strategy = DDPStrategy(process_group_backend="gloo")
    module = with_sam(build(Faulty, passes, rank), options.pop("rule"), nonfinite="skip", **options)
    made = fit(module, callbacks=[look], devices=2, strategy=strategy)
    assert differences(look.before[:2], look.after[:2]) == []
    return made.callback_metrics["sam/skipped_steps"].item(), [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("passes", [(1,), (2,)])
@pytest.mark.parametrize("ascent", ["global", "local"])
@pytest.mark.parametrize("rule", [SAM(0.3), SAME(1, 2.0, 0.3)], ids=repr)
def test_one_rank_is_enough_and_all_agree(
    ranks: dict[int, Ranks], rule: Rule, ascent: str, passes: tuple[int, ...], rank: int
) -> None:
    results = ranks[2].run(train, passes, rank, {"rule": rule, "ascent": ascent})
    assert differences(results[0], results[1]) == []
    skipped, weights = results[0]
    assert skipped == 1
    assert all(param.isfinite().all() for param in weights)


def test_a_zero_gradient_gives_no_perturbation() -> None:
    class Flat(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            moved.append([param.detach().clone() for param in self.parameters()])
            return super().training_step(batch, batch_idx) * 0

    moved: list[list[Tensor]] = []
    with float64():
        fit(with_sam(build(Flat), SAM(0.3)), max_steps=1)
    assert differences(moved[0], moved[1]) == []


@pytest.mark.parametrize(("rho", "told"), [(1e18, True), (0.1, False), (0.0, False)])
def test_a_radius_that_leads_to_no_gradient_is_told_at_once(rho: float, told: bool) -> None:
    module = Plain()
    module.layers = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(with_sam(module, SAM(rho)))
    said = [str(one.message) for one in caught if "Take a smaller radius" in str(one.message)]
    assert len(said) == told
    assert all("inf or NaN where SAM(rho=1e+18) has moved them by 1e+18" in line for line in said)


def test_the_radius_is_not_blamed_where_there_is_no_gradient_at_w_either() -> None:
    class Infinite(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * math.inf

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Take a smaller radius")
        fit(with_sam(Infinite(), SAM(0.1)), max_steps=1)
