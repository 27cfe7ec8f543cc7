"""No step of any rule makes the host wait for the GPU, with the monitors on."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.counting import ALL_RULES
from torch.utils.data import DataLoader

from gpu.machine import DEVICE, fit
from gpu.nets import Convolutional, made
from lightning_same import AESAM, CheckpointFractionMonitor, GradientNormMonitor, Rule

pytestmark = [pytest.mark.gpu, pytest.mark.cuda_only]


class OnDevice(Convolutional):
    """Batches that are on the GPU already: to copy one from pageable memory is to wait. A fused optimizer, or the loss
    scaler would ask whether a gradient is infinite."""

    def __init__(self) -> None:
        super().__init__()
        del self.accuracy  # Lightning's own call, and torchmetrics checks its input on the host.

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        return super(Convolutional, self).training_step(batch, batch_idx)

    def train_dataloader(self) -> DataLoader:
        batches = [[part.to(DEVICE) for part in batch] for batch in super().train_dataloader()]
        return DataLoader(batches, batch_size=None)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class Strict(Callback):
    """Whoever waits within a step raises an error, from the second epoch on: the first one compiles and allocates."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch > 0:
            torch.cuda.set_sync_debug_mode("error")
            self.steps += 1

    def on_train_batch_end(self, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if not isinstance(rule, AESAM)], ids=repr)
def test_steps_do_not_wait(rule: Rule, precision: str) -> None:
    """AESAM decides on the host whether to take pass two."""
    strict = Strict()
    monitors = [CheckpointFractionMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1)]
    try:
        # The callback stands last at the start of a batch and first at its end: loggers may read what was measured.
        fit(made(OnDevice, rule), precision=precision, callbacks=[strict, *monitors])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert strict.steps == 6


def test_the_mode_sees_waits() -> None:
    """Without which the tests above would prove nothing."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones((), device=DEVICE).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
