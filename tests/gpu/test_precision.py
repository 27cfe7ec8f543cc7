"""Pass two sees w + e on a GPU, in every precision, by every route, with an autocast of the user's own or without."""

from typing import Any

import pytest
import torch
from support.fits import differences
from support.precision import CASES, Case, check

from gpu.machine import DEVICE, fit
from gpu.nets import Noted, made
from lightning_same import SAM, SAME, Rule

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("deterministic")]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_losses_are_those_of_a_loop_by_hand(case: Case) -> None:
    check(case, DEVICE)


class Overflowing(Noted):
    """A fused AdamW; the loss of one pass of the fourth step is too large for float16."""

    bad_pass = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * 1e30 if self.sam_pass == self.bad_pass and batch_idx == 3 else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            self.before = [param.detach().clone() for param in self.parameters()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            self.after = [param.detach().clone() for param in self.parameters()]
            self.scale_after = self.trainer.precision_plugin.scaler.get_scale()


@pytest.mark.parametrize("bad_pass", [0, 1, 2])
@pytest.mark.parametrize("rule", [SAM(0.3), SAME((1, 4), 2.0, 0.3)], ids=repr)
def test_an_overflow_in_either_pass_skips_the_step(rule: Rule, bad_pass: int) -> None:
    """With 0 there is none, and the step is taken."""
    module = made(Overflowing, rule)
    module.bad_pass = bad_pass or -1
    made_trainer = fit(module, precision="16-mixed", max_epochs=1)
    assert made_trainer.global_step == 6
    assert bool(differences(module.before, module.after)) == (bad_pass == 0)
    assert all(param.isfinite().all() for param in module.parameters())
