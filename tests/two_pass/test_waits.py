"""No step waits for the device: counted by the operations that a step dispatches."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.counting import RULES, Counted
from support.fits import fit
from support.nets import Everything, Plain, build
from torch import Tensor, nn

from lightning_same import SAM, SAME, CheckpointFractionMonitor, GradientNormMonitor, LookSAM, Rule, with_sam
from lightning_same.replay import tensor_copies

WAITS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "bincount"}


class Steady(Callback):
    """Counts what the steps after the first ones dispatch, with everything between them."""

    def __init__(self) -> None:
        self.counted = Counted()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == max(2, trainer.accumulate_grad_batches):  # The first step of a fit may wait.
            self.counted.__enter__()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.counted.__exit__(None, None, None)


class Stateful(Plain):
    """BatchNorm, dropout, a buffer that the forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x)


@pytest.fixture
def like_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compared before it is put back, which only a CPU does for nothing."""
    monkeypatch.setattr(tensor_copies, "_compares", lambda tensor: False)


def waits(rule: Rule | None, kind: Any, **options: Any) -> int:
    steady = Steady()
    monitors = (
        [] if rule is None else [CheckpointFractionMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1)]
    )
    fit(with_sam(build(kind), rule), max_epochs=1, callbacks=[*monitors, steady], **options)
    assert steady.counted.names.total() > 50
    return sum(number for name, number in steady.counted.names.items() if name in WAITS)


@pytest.mark.parametrize("rule", [*RULES, LookSAM(k=2)], ids=repr)
@pytest.mark.usefixtures("like_an_accelerator")
def test_no_step_waits_for_the_device(rule: Rule) -> None:
    assert waits(rule, Stateful) == 0


@pytest.mark.usefixtures("like_an_accelerator")
def test_no_accumulated_or_mixed_precision_step_waits_either() -> None:
    assert waits(SAME((1, 4), 2.0), Stateful, accumulate_grad_batches=3) == 0
    assert waits(SAME((1, 4), 2.0), Stateful, precision="bf16-mixed") == 0


def test_the_counter_sees_waits() -> None:
    """`Everything` asks for the value of its loss once in each of four forwards, whose repetition makes eight."""
    once = waits(None, Everything)
    assert once >= 4
    assert waits(SAM(), Everything) > once
