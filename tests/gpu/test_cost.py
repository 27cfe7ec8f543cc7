"""Launches, idle time and peak memory of real networks, beside twice those of plain training."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision.models import resnet50, vit_b_16

from gpu.machine import DEVICE, fit
from lightning_same import SAM, SAME, Rule, VaSSO, with_sam

pytestmark = [pytest.mark.gpu, pytest.mark.cuda_only]

BATCH = 32
STEPS = 8
COPIES = {"SAM": 1, "SAME": 2, "VaSSO": 2}
"""Of the parameters that a rule holds at its peak."""


class Images(pl.LightningModule):
    def __init__(self, make: Callable[[], nn.Module], channels_last: bool) -> None:
        super().__init__()
        self.net, self.channels_last = make(), channels_last
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, foreach=True)

    def train_dataloader(self) -> DataLoader:
        x = torch.randn(BATCH, 3, 224, 224, device=DEVICE)
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
        return DataLoader([[x, torch.zeros(BATCH, dtype=torch.long, device=DEVICE)]] * STEPS, batch_size=None)


class Watched(Callback):
    """Profiles the last steps."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS // 2:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            self.profiler.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS - 1:
            torch.cuda.synchronize()
            self.profiler.__exit__(None, None, None)
            self.peak = torch.cuda.max_memory_allocated()

    def kernels(self) -> list[tuple[int, int]]:
        """Start and end of each kernel and copy on the GPU, in nanoseconds."""
        events = self.profiler.profiler.kineto_results.events()
        on_gpu = [event for event in events if "CUDA" in str(event.device_type())]
        return sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in on_gpu)


def measure(rule: Rule | None, make: Callable[[], nn.Module], channels_last: bool, precision: str) -> dict[str, float]:
    torch.manual_seed(0)
    module: Any = Images(make, channels_last)
    size = sum(param.nbytes for param in module.parameters())
    if rule is not None:
        module = with_sam(module, rule)
    watched = Watched()
    fit(module, max_epochs=1, precision=precision, callbacks=[watched])
    kernels = watched.kernels()
    busy, until = 0, kernels[0][0]
    for start, end in kernels:
        busy += max(0, end - max(start, until))
        until = max(until, end)
    span = until - kernels[0][0]
    steps = STEPS - STEPS // 2
    return {
        "launches": len(kernels) / steps,
        "milliseconds": span / steps / 1e6,
        "idle": 1 - busy / span,
        "peak": (watched.peak - watched.before) / size,
    }


NETWORKS = {
    "ResNet-50": (resnet50, False),
    "ResNet-50 channels_last": (resnet50, True),
    "ViT-B/16": (vit_b_16, False),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("rule", [SAM(0.05), SAME(1, 2.0, 0.05), VaSSO(0.05)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("network", NETWORKS)
def test_two_passes_cost_two_passes(network: str, rule: Rule, precision: str, record_property: Any) -> None:
    """At most 200 launches beyond those of two plain steps, and the copies of the parameters that the rule needs."""
    make, channels_last = NETWORKS[network]
    plain, ours = (measure(each, make, channels_last, precision) for each in (None, rule))
    for name in ours:
        record_property(name, f"{ours[name]:.3g} (plain {plain[name]:.3g})")
    assert ours["launches"] <= 2 * plain["launches"] + 200
    assert ours["idle"] <= plain["idle"] + 0.1
    assert ours["peak"] <= plain["peak"] + COPIES[type(rule).__name__] + 0.3
    assert ours["milliseconds"] <= 2.3 * plain["milliseconds"]
