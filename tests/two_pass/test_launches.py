"""What a step launches on an accelerator beyond its passes: no more for a deep network than for a shallow one."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.counting import ALL_RULES
from support.launches import KINDS, Images, beyond_passes, launched
from torch import nn

from lightning_same import AESAM, SAM, SAME, CheckpointFractionMonitor, GradientNormMonitor, Rule
from lightning_same.rules.timing import EveryStep

LIMIT = 60
"""Operations a step. The buffers of ResNet-50 alone, one by one, would be 477."""


def network(depth: int) -> Callable[[], nn.Module]:
    """Convolutions, each with BatchNorm; with 53 of them, the 161 parameters and 159 buffers of ResNet-50."""

    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))

    return make


def images(depth: int, kind: str, passes: int = 1, steps: int = 4) -> Images:
    return Images(network(depth), KINDS[kind][1], passes, steps=steps)


@cache
def plain(depth: int, kind: str) -> dict[int, Counter[str]]:
    """A step of one pass and of two, without a rule."""
    return {passes: launched(images(depth, kind, passes), None, KINDS[kind][0])[-1] for passes in (1, 2)}


def beyond(rule: Rule, depth: int, kind: str, callbacks: Sequence[Callback] = ()) -> list[tuple[int, Counter[str]]]:
    """The passes of two steps, and what they launch beyond them."""
    # Of ten steps, each timing takes some for the first that perturbs; the next two are of either kind for LookSAM.
    settling = 2 if isinstance(rule.timing, EveryStep) else 10
    steps = launched(
        images(depth, kind, steps=settling + 2),
        rule,
        KINDS[kind][0],
        values=1.0 if isinstance(rule, AESAM) else None,  # It decides on the host, by the size of g.
        callbacks=callbacks,
        settling=settling,
    )
    return list(beyond_passes(steps, plain(depth, kind)))


def test_the_deep_network_has_the_tensors_of_resnet_50() -> None:
    net = network(53)()
    assert (len(list(net.parameters())), len(list(net.buffers()))) == (161, 159)


@pytest.mark.parametrize("kind", ["float32", "bfloat16, channels_last"])
@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_a_step_launches_few_operations_beyond_its_passes_however_deep_the_network(rule: Rule, kind: str) -> None:
    shallow, deep = beyond(rule, 2, kind), beyond(rule, 4, kind)
    assert deep == shallow
    for _, names in deep:
        assert names.total() <= LIMIT, names


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_tensors_of_resnet_50_too(kind: str) -> None:
    deep = beyond(SAM(), 53, kind)
    assert deep == beyond(SAM(), 2, kind)
    assert [passes for passes, _ in deep] == [2, 2]
    if kind == "float32":
        assert [names.total() for _, names in deep] == [20, 20], "what its formula and the replay take"


def test_monitors_add_no_operation_per_tensor() -> None:
    def monitored(depth: int) -> list[tuple[int, Counter[str]]]:
        monitors = [CheckpointFractionMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1)]
        return beyond(SAME(), depth, "float32", monitors)

    assert monitored(4) == monitored(2)


def test_frozen_layers_and_their_buffers_add_no_operation_per_tensor() -> None:
    def frozen(depth: int) -> int:
        module = images(depth, "channels_last")
        module.net[:-1].requires_grad_(False)
        module.configure_optimizers = lambda: torch.optim.SGD(module.net[-1].parameters(), 0.1)
        steps = launched(module, SAM())
        return steps[-1]["clone"] + steps[-1]["cat"] + steps[-1]["_foreach_copy_"]

    assert frozen(4) == frozen(2)
