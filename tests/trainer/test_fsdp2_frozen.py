"""FSDP2 with layers that are not trained, and with weights that the training step itself writes to."""

import warnings
from typing import Any

import pytest
import torch
from support.fits import fit
from support.nets import build
from support.ranks import Ranks
from support.sharded import Sharded, needs_fsdp2, strategy, whole
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lightning_same import SAM, SAME, GradientNormMonitor, Rule, with_sam
from lightning_same.replay import tensor_copies

pytestmark = needs_fsdp2


class WithTeacher(Sharded):
    """A frozen teacher, sharded as well, that each step moves; and a buffer that counts the steps."""

    def __init__(self, moves: bool = True) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.moves = moves

    def configure_model(self) -> None:
        super().configure_model()
        if self.device_mesh is not None:
            fully_shard(self.teacher, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        if self.moves:
            with torch.no_grad():
                for param in self.teacher.parameters():
                    param.mul_(0.99).add_(0.01)
        distance = (self(batch[0]) - self.teacher(batch[0])).square().mean()
        return super().training_step(batch, batch_idx) + distance * (1 + 0.01 * self.calls)


def train(rule: Rule | None, moves: bool = True, written: bool = False) -> tuple[list[Tensor], float]:
    module = build(WithTeacher, moves)
    if rule is not None:
        module = with_sam(module, rule)
    monitors = [GradientNormMonitor(every_n_steps=1)]
    with pytest.MonkeyPatch.context() as patch:
        if written:  # As on an accelerator, where values are not compared.
            patch.setattr(tensor_copies, "_compares", lambda tensor: False)
        fit(module, callbacks=monitors, **strategy())
    return whole(module), module.calls.item()


@pytest.mark.parametrize(("moves", "written"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rule", [None, SAME((1, 4), 2.0, 0.3)], ids=repr)
def test_frozen_layers(ranks: dict[int, Ranks], rule: Rule | None, moves: bool, written: bool) -> None:
    weights, calls = train(rule, moves)
    assert calls == 12
    for ours, counted in ranks[2].run(train, rule, moves, written):
        assert counted == calls
        for a, b in zip(ours, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class WritesLate(Sharded):
    """Writes to trained weights, but not in the first steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx >= 2:
            with torch.no_grad():
                self.layers[2].weight.mul_(0.9)
        return super().training_step(batch, batch_idx)


def train_late() -> tuple[list[Tensor], list[str]]:
    module = with_sam(build(WritesLate), SAM(0.3))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(module, **strategy())
    return whole(module), [str(warning.message) for warning in seen if "first time" in str(warning.message)]


def test_late_writes_are_seen(ranks: dict[int, Ranks]) -> None:
    weights, told = train_late()
    assert len(told) == 1
    results = ranks[2].run(train_late)
    assert len(results[0][1]) == 1
    for ours, _ in results:
        for a, b in zip(ours, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_gathered_parameter_does_not_count_as_written(ranks: dict[int, Ranks]) -> None:
    """FSDP2's own gathering and freeing changes nothing on the shards."""
    for told in ranks[2].run(train_quietly):
        assert told == []


def train_quietly() -> list[str]:
    module = with_sam(build(Sharded), SAM(0.3))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(module, **strategy())
    return [str(warning.message) for warning in seen if "trained weights" in str(warning.message)]
