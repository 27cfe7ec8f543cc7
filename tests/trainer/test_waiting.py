"""What one process asks of the others in a step, and what the host asks of the device."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.accelerator import LikeAnAccelerator
from support.fits import fit
from support.nets import Plain, build
from support.ranks import Ranks

from lightning_same import SAM, CheckpointFractionMonitor, Rule, with_sam
from lightning_same.trainer.optimizers import lr_ratio


def barriers(rule: Rule | None) -> list[int]:
    """How many barriers each step takes."""
    counts: list[int] = []
    entered = 0

    class Counts(Plain):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            counts.append(entered)

    def barrier(*args: Any, **kwargs: Any) -> None:
        nonlocal entered
        entered += 1

    module: Any = build(Counts)
    if rule is not None:
        module = with_sam(module, rule, nonfinite="skip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "barrier", barrier)
        monitors = [CheckpointFractionMonitor(every_n_steps=1)]
        fit(module, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), callbacks=monitors, max_epochs=1)
    return [after - before for before, after in pairwise(counts)]


@pytest.mark.parametrize("rule", [SAM(0.3), None], ids=repr)
def test_a_step_waits_in_no_barrier(ranks: dict[int, Ranks], rule: Rule | None) -> None:
    for counts in ranks[2].run(barriers, rule):
        assert counts == [0] * 5


def test_a_learning_rate_on_the_device_is_waited_for_only_when_it_has_changed() -> None:
    lr = torch.tensor(0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    optimizer.param_groups[0]["max_lr"] = 1.0
    assert lr_ratio(optimizer) == 0.5
    with LikeAnAccelerator():
        assert lr_ratio(optimizer) == 0.5
    lr.fill_(0.25)
    assert lr_ratio(optimizer) == 0.25
