"""FSDP2 over NCCL: validation, frozen layers, offload, bfloat16, hybrid, with tensor parallelism; save and resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from support.fits import differences
from support.fsdp2 import options_for, train, train_and_resume, train_each
from support.named_rules import RULES
from support.nets import Plain, build
from support.ranks import Ranks
from support.sharded import TwoDimensional, needs_fsdp2, whole
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from gpu.machine import BACKEND, DEVICE, GPUS, REHEARSAL, fit
from lightning_same import SAM, SAME, CheckpointFractionMonitor, GradientNormMonitor, Rule, VaSSO, with_sam

pytestmark = [pytest.mark.gpu, pytest.mark.multi_gpu, needs_fsdp2]

STATEFUL = {name: rule for name, rule in RULES.items() if rule.stateful}
needs_four = pytest.mark.skipif(not REHEARSAL and GPUS < 4, reason="needs 4 GPUs")
WAYS = ["plain", "offloaded", pytest.param("hybrid", marks=needs_four)]


@pytest.mark.parametrize("way", WAYS)
def test_processes_are_one(gpus: Ranks, way: str) -> None:
    expected = train_each(RULES, "plain", DEVICE)
    for found in gpus.run(train_each, RULES, way, DEVICE):
        for name in RULES:
            for ours, one in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(ours, one, rtol=0, atol=1e-5)


def test_parameters_in_bfloat16(gpus: Ranks) -> None:
    _, expected = train(SAM(2.0), "bfloat16", DEVICE)
    found = gpus.run(train, SAM(2.0), "bfloat16", DEVICE)
    means = [sum(each) / len(found) for each in zip(*(losses for _, losses in found), strict=True)]
    assert means[:6] == pytest.approx(expected[:6], rel=0.05)
    for _, losses in found:
        assert all(first != second for first, second in zip(losses[::2], losses[1::2], strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_every_rule_that_carries_something_goes_on_from_a_file(gpus: Ranks, way: str, tmp_path: Path) -> None:
    for found in gpus.run(train_and_resume, STATEFUL, way, str(tmp_path), DEVICE):
        for name, (straight, resumed) in found.items():
            assert differences(straight, resumed) == [], name


class WithTeacher(Plain):
    """A frozen teacher that each step moves, and a buffer, in shards as the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            for part in (self.layers, self.teacher):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            for param in self.teacher.parameters():
                param.mul_(0.99).add_(0.01)
        distance = (self(batch[0]) - self.teacher(batch[0])).square().mean()
        return super().training_step(batch, batch_idx) + distance * (1 + 0.01 * self.calls)


def train_with_teacher(rule: Rule) -> list[Tensor]:
    module = with_sam(build(WithTeacher), rule)
    monitors = [CheckpointFractionMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1)]
    fit(module, callbacks=monitors, **options_for(DEVICE))
    return [param.cpu() for param in whole(module)]


def test_frozen_layers_that_a_step_writes_to(gpus: Ranks) -> None:
    rule = SAME((1, 4), 2.0, 0.3)
    weights = train_with_teacher(rule)
    for ours in gpus.run(train_with_teacher, rule):
        for a, b in zip(ours, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def train_in_two_dimensions(rule: Rule) -> list[Tensor]:
    options: dict[str, Any] = {}
    if distributed.is_initialized():
        size = distributed.get_world_size()
        sharded = ModelParallelStrategy(
            data_parallel_size=size // 2, tensor_parallel_size=2, process_group_backend=BACKEND
        )
        options = {"devices": size, "strategy": sharded}
    module = with_sam(build(TwoDimensional), rule)
    fit(module, **options)
    return [param.cpu() for param in whole(module)]


@needs_four
@pytest.mark.parametrize("rule", [SAM(0.3), SAME((1, 4), 2.0, 0.3), VaSSO(0.3)], ids=repr)
def test_with_tensor_parallelism(gpus: Ranks, rule: Rule) -> None:
    weights = train_in_two_dimensions(rule)
    for ours in gpus.run(train_in_two_dimensions, rule):
        for a, b in zip(ours, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
