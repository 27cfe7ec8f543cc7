"""One line at the start of a fit says how it trains."""

import logging
import warnings
from typing import Any

import pytest
from support.fits import fit
from support.nets import Plain, build
from torch import Tensor

from lightning_same import SAM, SAME, Every, MomentumSAM, Rule, SAMMixin, with_sam


def lines_of(caplog: pytest.LogCaptureFixture, module: Any, **options: Any) -> list[str]:
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(module, max_epochs=1, **options)
    return [record.message for record in caplog.records if " trains with " in record.message]


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        (SAM(0.1), "2 passes a step"),
        (SAME(ckpt=1, rho=0.1), "2 passes a step"),
        (SAM(0.1, timing=Every(2)), "2 passes in each step that it perturbs"),
        (SAM(0.0), "1 pass a step, since rho is 0"),
        (MomentumSAM(0.1), "1 pass a step, at w + e"),
    ],
    ids=repr,
)
def test_the_rule_and_its_passes(rule: Rule, passes: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = [f"Plain trains with {rule!r}: {passes}, automatic optimization."]
    assert lines_of(caplog, with_sam(build(Plain), rule)) == expected


class ByHand(SAMMixin, Plain):
    sam = SAM(0.1)

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.two_pass_step(lambda: Plain.training_step(self, batch, batch_idx), self.optimizers())


def test_manual_optimization(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines_of(caplog, build(ByHand))
    assert line.endswith("2 passes a step, manual optimization.")


def test_how_a_window_is_perturbed(caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2}
    (line,) = lines_of(caplog, with_sam(build(Plain), SAM(0.1), accumulate="micro_batch"), **options)
    assert line.endswith("automatic optimization, perturbed once per micro-batch.")


class Unruled(SAMMixin, Plain):
    """Somebody has forgotten the rule."""


class Refused(SAMMixin, Plain):
    sam = None


def test_a_mixin_without_a_rule_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="Unruled has the mixin but no rule, so it trains without SAM"):
        assert lines_of(caplog, build(Unruled)) == []


@pytest.mark.parametrize("kind", [Refused, with_sam(Plain, None), Plain])
def test_to_want_no_rule_is_not_told(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has the mixin")
        assert lines_of(caplog, build(kind)) == []


def test_none_on_the_instance_is_a_choice() -> None:
    module = build(Unruled)
    module.sam = None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has the mixin")
        fit(module, max_epochs=1)
