"""What a step of a real network dispatches beyond its two passes: on a GPU, each operation is a launch."""

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.counting import Counted
from support.fits import fit
from support.nets import Plain, build, collate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet50

from lightning_same import SAM, SAME, GradientNormMonitor, Rule, VaSSO, with_sam
from lightning_same.gradients import tensors
from lightning_same.replay import tensor_copies

LIMIT = 60
"""Operations a step. The buffers of ResNet-50 alone, one by one, would be 477."""

MONITORED = 120


class Images(Plain):
    """ResNet-50, with its 161 parameters and 159 buffers, in half the width."""

    def __init__(self, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.layers = resnet50(num_classes=10, width_per_group=32).to(memory_format=memory_format)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self) -> DataLoader:
        data = TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))
        return DataLoader(data, 2, collate_fn=collate)


class ThirdStep(Callback):
    def __init__(self) -> None:
        self.counted = Counted()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.counted.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.counted.__exit__(None, None, None)


class Passes(Images):
    """Two passes one after the other, and a step: what SAM takes at the least."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        super().training_step(batch, batch_idx).backward()
        self.zero_grad()
        return super().training_step(batch, batch_idx)


def dispatched(kind: type[Images], rule: Rule | None, monitored: bool, memory_format: Any) -> Counter[str]:
    watched = ThirdStep()
    monitors = [GradientNormMonitor(every_n_steps=1)] if monitored else []
    module: Any = build(kind, memory_format)
    if rule is not None:
        module = with_sam(module, rule)
    # The third step is one of the steady state: the first has looked whether the weights are written to.
    fit(module, max_epochs=1, callbacks=[watched, *monitors])
    return watched.counted.names


@pytest.fixture(scope="module", params=[torch.contiguous_format, torch.channels_last], ids=str)
def two_passes(request: pytest.FixtureRequest) -> tuple[Any, Counter[str]]:
    return request.param, dispatched(Passes, None, False, request.param)


@pytest.mark.parametrize(("rule", "monitored"), [(SAM(), False), (SAME(), False), (VaSSO(), False), (SAME(), True)])
def test_resnet_50_takes_few_operations_beyond_two_passes(
    rule: Rule, monitored: bool, two_passes: tuple[Any, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on an accelerator: no arithmetic of one call for a whole list, and everything is written back.
    monkeypatch.setattr(tensors, "ONE_CALL", frozenset())
    monkeypatch.setattr(tensor_copies, "_must_be_written", lambda tensor, value: True)
    memory_format, least = two_passes
    ours = dispatched(Images, rule, monitored, memory_format)
    assert ours["convolution"] == least["convolution"], "both take two passes"
    beyond = {name: number - least[name] for name, number in ours.items() if number != least[name]}
    assert 0 < ours.total() - least.total() <= (MONITORED if monitored else LIMIT), beyond
