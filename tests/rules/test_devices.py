"""Parameters on several devices, as CPU offload and model parallelism by hand leave them. The devices are pretended."""

import pytest
import torch
from support.counting import ALL_RULES
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lightning_same import AESAM, Memory, Progress, Rule
from lightning_same.gradients.checkpoints import checkpoint_fractions, ratio_counts
from lightning_same.gradients.norms import gradient_norms
from lightning_same.gradients.pieces import by_kind
from lightning_same.gradients.tensors import all_finite, dot_and_square


def asks_the_driver() -> bool:
    """Whether copying between pretended tensors on CUDA needs a driver, as it does in builds for CUDA of torch 2.6."""
    with FakeTensorMode():
        try:
            torch.empty(2, device="cuda:0").copy_(torch.empty(2, device="cuda:0"))
        except RuntimeError:
            return True
    return False


pytestmark = pytest.mark.skipif(asks_the_driver(), reason="this build of torch asks the driver for pretended devices")

DEVICES = ["cuda:0", "cpu", "cuda:1", "cuda:0"]


def some() -> list[Tensor]:
    return [torch.empty(size, 2, device=device) for size, device in enumerate(DEVICES, 3)]


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if not isinstance(rule, AESAM)], ids=repr)
def test_a_rule_takes_its_steps_on_several_devices(rule: Rule) -> None:
    with FakeTensorMode():
        params, grads, perturbed_grads = some(), some(), some()
        memory = Memory(params)
        for number in range(3):
            restore = memory.copy()
            with rule.perturbed(params, grads, at=Progress(number, total=10), memory=memory):
                pass
            rule.combine_(grads, perturbed_grads, Progress(number, total=10), memory)
            rule.plain_step_(grads, memory)
            restore()
        assert [str(param.device) for param in params] == DEVICES


def test_what_is_measured_is_on_the_first_device() -> None:
    with FakeTensorMode():
        g, s = some(), some()
        measured = [*checkpoint_fractions(g, s), *gradient_norms(g, s), ratio_counts(g, s), all_finite(g)]
        assert {str(value.device) for value in [*measured, *dot_and_square(g, s)]} == {"cuda:0"}


def test_tensors_of_two_devices_are_of_two_kinds() -> None:
    with FakeTensorMode():
        here, there = torch.empty(2), torch.empty(2, device="cuda:0")
        for tensors in ([here, there, here], [there, here, there]):
            assert [[tensor.device for tensor in group] for (group,) in by_kind(tensors)] == [
                [tensors[0].device] * 2,
                [tensors[1].device],
            ]
