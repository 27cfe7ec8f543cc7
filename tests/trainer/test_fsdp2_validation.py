"""FSDP2 leaves parameters unsharded after a validation loop, a forward or a backward; the passes do not mind."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import RowLogger, fit
from support.nets import build
from support.ranks import Ranks
from support.sharded import Validated, needs_fsdp2, strategy, whole
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_same import (
    SAM,
    SAME,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    MomentumSAM,
    ReplayCheck,
    Rule,
    with_sam,
)
from lightning_same.rules.progress import Progress
from lightning_same.rules.state import Memory
from lightning_same.rules.timing import EveryStep

pytestmark = needs_fsdp2


def mean_over_ranks(numbers: list[float]) -> list[float]:
    means = torch.tensor(numbers, dtype=torch.float64)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(means)
        means /= torch.distributed.get_world_size()
    return means.tolist()


def train(rule: Rule | None, validates: bool, **kwargs: Any) -> tuple[list[float], list[Tensor]]:
    """The losses of all passes, and the weights."""
    options: dict[str, Any] = {"val_check_interval": 2} if validates else {"limit_val_batches": 0}
    module = build(Validated, **kwargs)
    if rule is not None:
        module = with_sam(module, rule)
    fit(module, **options, **strategy())
    return mean_over_ranks(module.seen), whole(module)


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "reshard_after_forward=True": {"reshard": True},
    "reshard_after_forward=False": {"reshard": False},
    "reshard_after_backward=False": {"keeps_whole": True},
    "neither": {"reshard": False, "keeps_whole": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [SAM(0.3), SAME((1, 4), 2.0, 0.3), MomentumSAM(0.3)], ids=repr)
def test_validation_changes_nothing(ranks: dict[int, Ranks], rule: Rule | None, kind: str) -> None:
    check(ranks[2], rule, KINDS[kind])


def test_shards_on_fewer_processes_after_the_forward(ranks: dict[int, Ranks]) -> None:
    """With a number, a forward leaves the parameters sharded over so many processes."""
    check(ranks[4], SAM(0.3), {"reshard": 2})


def check(group: Ranks, rule: Rule | None, kind: dict[str, Any]) -> None:
    losses, weights = train(rule, False)
    for validates in (False, True):
        for seen, ours in group.run(_train, rule, validates, kind):
            assert seen == pytest.approx(losses, rel=0, abs=1e-6)
            for a, b in zip(ours, weights, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def _train(rule: Rule | None, validates: bool, kind: dict[str, Any]) -> tuple[list[float], list[Tensor]]:
    return train(rule, validates, **kind)


def measure(validates: bool, kind: dict[str, Any]) -> tuple[list[Any], list[Tensor]]:
    """What the monitors log on a module without a rule, and its weights."""
    options: dict[str, Any] = {"val_check_interval": 2} if validates else {"limit_val_batches": 0}
    logger, module = RowLogger(), build(Validated, **kind)
    check_replay = ReplayCheck(every_n_steps=1)
    monitors = [CheckpointFractionMonitor(rho=0.3), GradientNormMonitor(rho=0.3, per_layer=True), check_replay]
    fit(module, callbacks=monitors, logger=logger, **options, **strategy())
    assert check_replay.report is not None
    assert check_replay.report.is_right
    own = [(step, row) for step, row in logger.rows if any("ckpt_fraction" in key or "grad" in key for key in row)]
    return own, whole(module)


@pytest.mark.parametrize("kind", ["default", "reshard_after_forward=False", "neither"])
def test_monitors_of_a_plain_module(ranks: dict[int, Ranks], kind: str) -> None:
    rows, weights = measure(False, {})
    assert len(rows) == 24
    results = ranks[2].run(measure, True, KINDS[kind])
    for (step, row), (expected_step, expected) in zip(results[0][0], rows, strict=True):
        assert step == expected_step
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for _, ours in results:
        for a, b in zip(ours, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class Unshards(Callback):
    """Somebody asks for whole parameters just before the step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, FSDPModule):
                layer.unshard()


def train_unsharded(rule: Rule) -> list[Tensor]:
    module = with_sam(build(Validated), rule)
    fit(module, callbacks=[Unshards()], limit_val_batches=0, **strategy())
    return whole(module)


@pytest.mark.parametrize("rule", [SAM(0.3), MomentumSAM(0.3)], ids=repr)
def test_parameters_that_a_callback_has_unsharded(ranks: dict[int, Ranks], rule: Rule) -> None:
    _, weights = train(rule, False)
    for ours in ranks[2].run(train_unsharded, rule):
        for a, b in zip(ours, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class Never(EveryStep):
    """A timing that looks at g and says no."""

    def confirmed(self, grads: Any, at: Progress, memory: Memory) -> bool:
        return False


class Gathered(Validated):
    """Its parameters stay whole after a backward, and it does not reshard them."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


def validation_losses(rule: Rule) -> list[float]:
    losses: list[float] = []

    class Read(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            losses.append(trainer.callback_metrics["val_loss"].item())

    module = with_sam(build(Gathered, reshard=False, keeps_whole=True), rule)
    fit(module, callbacks=[Read()], val_check_interval=2, **strategy())
    return losses


def test_after_a_step_that_was_not_confirmed_validation_sees_the_new_weights(ranks: dict[int, Ranks]) -> None:
    rule = Rule(0.3, timing=Never())
    losses = validation_losses(rule)
    assert len(set(losses)) > 2
    for ours in ranks[2].run(validation_losses, rule):
        assert ours == pytest.approx(losses, rel=1e-5)
