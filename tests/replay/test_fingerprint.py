"""Fingerprint: every piece of state that it says it looks at is looked at."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_same.replay.fingerprint import DEPTH, ITEMS, fingerprint


class Slotted:
    __slots__ = ("slot",)


class Helper(Slotted):
    """An object of the user's own, with a slot beside its attributes."""

    def __init__(self) -> None:
        self.slot: Any = 0
        self.steps = 0
        self.inner: Any = None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.count = 0
        self.list = [0] * 5
        self.long = [0] * (2 * ITEMS + 9)
        self.dict = {"a": 0, 3: [0]}
        self.tuple = (0, [0])
        self.deque = deque([0, 0])
        self.set = {0}
        self.array = np.zeros(3)
        self.tensor = torch.zeros(3)
        self.generator = torch.Generator().manual_seed(0)
        self.python = random.Random(0)
        self.numpy = np.random.default_rng(0)
        self.old_numpy = np.random.RandomState(0)
        self.helper = Helper()
        self.helper.inner = Helper()


CHANGES: dict[str, Callable[[Any], object]] = {
    "norm.running_mean": lambda net: net.norm.running_mean.add_(1),
    "norm.num_batches_tracked": lambda net: net.norm.num_batches_tracked.add_(1),
    "teacher.weight": lambda net: net.teacher.weight.add_(1),
    "count": lambda net: setattr(net, "count", 1),
    "list[0]": lambda net: net.list.__setitem__(0, 1),
    "list[4]": lambda net: net.list.__setitem__(4, 1),
    "long[0]": lambda net: net.long.__setitem__(0, 1),
    f"long[{ITEMS - 1}]": lambda net: net.long.__setitem__(ITEMS - 1, 1),
    f"long[{ITEMS + 9}]": lambda net: net.long.__setitem__(ITEMS + 9, 1),
    f"long[{2 * ITEMS + 8}]": lambda net: net.long.__setitem__(-1, 1),
    "dict['a']": lambda net: net.dict.__setitem__("a", 1),
    "dict[3][0]": lambda net: net.dict[3].__setitem__(0, 1),
    "tuple[1][0]": lambda net: net.tuple[1].__setitem__(0, 1),
    "deque[1]": lambda net: net.deque.__setitem__(1, 1),
    "set (length)": lambda net: net.set.add(1),
    "array": lambda net: net.array.__setitem__(2, 1.0),
    "tensor": lambda net: net.tensor.__setitem__(2, 1.0),
    "generator": lambda net: torch.rand(1, generator=net.generator),
    "python": lambda net: net.python.random(),
    "numpy": lambda net: net.numpy.random(),
    "old_numpy": lambda net: net.old_numpy.rand(),
    "helper.steps": lambda net: setattr(net.helper, "steps", 1),
    "helper.slot": lambda net: setattr(net.helper, "slot", 1),
    "helper.inner.steps": lambda net: setattr(net.helper.inner, "steps", 1),
}


@pytest.mark.parametrize("path", CHANGES)
@torch.no_grad()
def test_a_change_is_seen_where_it_is_made(path: str) -> None:
    net = Net()
    before = fingerprint(net)
    assert before == fingerprint(net)
    CHANGES[path](net)
    after = fingerprint(net)
    assert [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)] == [path]


@torch.no_grad()
def test_trained_parameters_and_the_middle_of_long_lists_and_mappings_are_left_out() -> None:
    net = Net()
    net.mapping = dict.fromkeys(range(3 * ITEMS), 0)
    before = fingerprint(net)
    net.layer.weight.add_(1)
    net.long[ITEMS] = net.mapping[ITEMS] = net.mapping[2 * ITEMS - 1] = 1
    assert before == fingerprint(net)
    for key in (ITEMS - 1, 2 * ITEMS):
        net.mapping[key] = 1
        assert before != (before := fingerprint(net))


def test_objects_are_looked_into_so_far_and_a_cycle_ends() -> None:
    net = Net()
    inner = net.helper
    for _ in range(DEPTH + 3):
        inner.inner = Helper()
        inner = inner.inner
    net.helper.slot = net.helper
    depth = max(path.count(".inner") for path in fingerprint(net))
    assert depth == DEPTH
