"""Timings, and radii that change while training."""

import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.fits import RowLogger, fit
from support.formulas import STEPS
from support.named_rules import Net, counter
from support.nets import float64

from lightning_same import AESAM, SAM, Progress, Rule, with_sam
from lightning_same.rules.schedules import Cosine, FollowLR
from lightning_same.rules.timing import LastFraction as TailTiming
from lightning_same.rules.timing import RandomSteps


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

    logger = RowLogger()
    with float64():
        module = with_sam(Decays(), SAM(FollowLR(0.3, 0.1)))
        fit(module, max_epochs=1, callbacks=[Watch()], logger=logger)
    expected = [0.1 + 0.2 * (1 - 0.5 * min(step, 10) / 10) for step in range(STEPS)]
    assert seen == pytest.approx(expected)
    rows = [(step, row["sam/rho"]) for step, row in logger.rows if "sam/rho" in row]
    assert rows == [(step, pytest.approx(value)) for step, value in enumerate(expected)]


def test_a_radius_is_logged_once_for_each_window() -> None:
    logger = RowLogger()
    with float64():
        fit(with_sam(Net(), SAM(Cosine(0.3))), max_epochs=1, accumulate_grad_batches=2, logger=logger)
    assert [step for step, row in logger.rows if "sam/rho" in row] == list(range(STEPS // 2))


def test_loggers_get_a_radius_as_often_as_what_a_module_logs() -> None:
    logger = RowLogger()
    with float64():
        fit(with_sam(Net(), SAM(Cosine(0.3))), max_epochs=1, log_every_n_steps=5, logger=logger)
    assert [step for step, row in logger.rows if "sam/rho" in row] == list(range(4, STEPS, 5))


def test_a_constant_radius_is_not_logged() -> None:
    made = fit(with_sam(Net().float(), None), max_epochs=1, max_steps=0)
    assert "sam/rho" not in made.callback_metrics


@pytest.mark.parametrize(
    ("rule", "part"), [(SAM(0.3, timing=TailTiming(0.3)), "timing"), (SAM(Cosine(0.3)), "rho"), (AESAM(0.3), "timing")]
)
def test_a_rule_that_needs_the_length_of_training_says_so_before_the_first_step(rule: Rule, part: str) -> None:
    module = with_sam(Net(), rule)
    counter.clear()
    told = f"{getattr(rule, part)!r} needs the length of the training: give the Trainer `max_epochs`"
    with float64(), pytest.raises(ValueError, match=re.escape(told)):
        fit(module, max_epochs=-1)
    assert counter == []
