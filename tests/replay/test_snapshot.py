"""Snapshot: each kind of state comes back, in the same objects."""

import copy
import random
from collections import OrderedDict, defaultdict, deque
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from support.fits import differences, trainer
from torch import nn

from lightning_same.replay.inventory import LENGTH_LIMIT
from lightning_same.replay.snapshot import Snapshot


class Stateful(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.metrics = nn.ModuleList([torchmetrics.MeanMetric(), torchmetrics.CatMetric(), torchmetrics.MaxMetric()])
        self.collection = torchmetrics.MetricCollection({"mae": torchmetrics.MeanAbsoluteError()})
        self.unregistered = [torchmetrics.SumMetric()]
        self.register_buffer("buffer", torch.zeros(2), persistent=False)
        self.register_buffer("later", None)
        self.count = 0
        self.tensor = torch.zeros(2)
        self.array = np.zeros(2)
        self.list: list[Any] = [1, [2, {3}], torch.zeros(1)]
        self.dict = OrderedDict(a=defaultdict(list), b=(torch.zeros(1), [0]))
        self.deque = deque([1, 2], maxlen=2)
        self.set = {1}
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(1)
        self.old_numpy_generator = np.random.RandomState(1)
        self.python_generator = random.Random(1)

    def change(self) -> list[Any]:
        """Change everything; return all that is random."""
        self.norm(torch.randn(4, 3))
        for metric in [*self.metrics, *self.unregistered]:
            metric(torch.rand(2))
        self.collection(torch.rand(2), torch.rand(2))
        self.buffer += 1
        self.later = torch.ones(1)
        self.count += 1
        self.tensor += 1
        self.array += 1
        self.list[1][1].add(self.count)
        self.list[2] += 1
        self.list.append(0)
        self.dict["a"]["x"].append(1)
        self.dict["b"][0].add_(1)
        self.dict["b"][1].append(1)
        self.dict.move_to_end("a")
        self.deque.append(3)
        self.set.add(self.count + 1)
        self.born = self.count
        return [
            torch.rand(2, generator=self.torch_generator),
            self.numpy_generator.random(2),
            self.old_numpy_generator.random(2),
            self.python_generator.random(),
            torch.rand(1),
            random.random(),
            np.random.rand(),
        ]

    def seen(self) -> list[Any]:
        return [
            dict(self.named_buffers()),
            [metric.compute() for metric in [*self.metrics, *self.unregistered]],
            [metric.update_count for metric in self.metrics],
            self.collection.compute(),
            self.later,
            self.count,
            self.tensor.clone(),
            self.array.copy(),
            repr(self.list),
            repr(self.dict),
            repr(self.deque),
            sorted(self.set),
            getattr(self, "born", None),
        ]


def test_everything_comes_back_and_is_replayed() -> None:
    module = Stateful()
    module.change()
    objects = {
        name: value for name, value in vars(module).items() if name in ("list", "dict", "deque", "set", "tensor")
    }
    before = copy.deepcopy(module.seen())
    start = Snapshot(module)
    first = module.change()
    after = copy.deepcopy(module.seen())
    end = Snapshot(module)
    assert len(differences(before, after)) > 8
    start.restore()
    assert differences(module.seen(), before) == []
    second = module.change()
    assert differences(first, second) == []
    assert differences(module.seen(), after) == []
    module.change()
    end.restore()
    assert differences(module.seen(), after) == []
    assert all(vars(module)[name] is value for name, value in objects.items())


def test_a_new_attribute_goes_and_a_lost_one_returns() -> None:
    module = nn.Linear(1, 1)
    module.mine = [1]
    start = Snapshot(module)
    del module.mine
    module.other = 1
    start.restore()
    assert module.mine == [1]
    assert not hasattr(module, "other")


def test_what_cannot_be_written_to_is_left_alone(tmp_path: Any) -> None:
    np.save(tmp_path / "array.npy", np.arange(4.0))
    module = nn.Sequential(nn.LazyBatchNorm1d())
    module.mapped = torch.from_numpy(np.load(tmp_path / "array.npy", mmap_mode="r"))
    module.register_buffer("mask", torch.ones(1, 3).expand(2, 3))
    module.nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    module.leaf = torch.ones(2, requires_grad=True)
    start = Snapshot(module)
    start.restore()
    with torch.no_grad():
        module.leaf += 1
    start.restore()
    assert module.leaf.tolist() == [1, 1]


def test_frozen_parameters_are_held_and_trained_ones_are_not() -> None:
    module = nn.ModuleDict({"net": nn.Linear(3, 3), "target": nn.Linear(3, 3).requires_grad_(False)})
    trained = list(module["net"].parameters())
    module.alias = [param.data for param in trained]
    start = Snapshot(module, trained)
    target = module["target"].weight.clone()
    with torch.no_grad():
        for param in module.parameters():
            param.data.add_(1)
    moved = [param.detach().clone() for param in trained]
    start.restore()
    assert all(torch.equal(a, b) for a, b in zip(trained, moved, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(module.alias, moved, strict=True))
    assert torch.equal(module["target"].weight, target)


def test_a_large_frozen_backbone_and_gathered_outputs_are_not_copied() -> None:
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "backbone": nn.Linear(40, 40).requires_grad_(False)})
    module.outputs = [torch.zeros(100)]
    start = Snapshot(module, list(module["head"].parameters()))
    moved = [module["backbone"].weight, module["backbone"].bias, module.outputs[0]]
    with torch.no_grad():
        for tensor in moved:
            tensor.fill_(3)
    start.restore()
    assert all((tensor == 3).all() for tensor in moved)


def test_graphs_kept_across_a_restore_stay_usable() -> None:
    """Evaluation-mode BatchNorm saves its buffers for backward."""
    module = nn.BatchNorm1d(3).eval()
    x = torch.randn(4, 3, requires_grad=True)
    out = module(x).sum()
    Snapshot(module).restore()
    out.backward()
    assert x.grad is not None


def test_long_lists_are_copied_but_not_looked_into() -> None:
    module = nn.Identity()
    module.long = [torch.zeros(1) for _ in range(LENGTH_LIMIT + 1)]
    start = Snapshot(module)
    module.long.pop()
    module.long[0].add_(1)
    start.restore()
    assert len(module.long) == LENGTH_LIMIT + 1
    assert module.long[0] == 1


@pytest.mark.parametrize("metric", [torchmetrics.CatMetric, torchmetrics.classification.BinaryAUROC])
def test_what_a_metric_has_gathered_is_put_back_without_a_copy_of_it(metric: Any) -> None:
    """Such a list grows by one tensor a step: to copy them all each time would be quadratic."""
    module = nn.ModuleDict({"metric": metric()})
    states = [name for name, value in module["metric"]._defaults.items() if isinstance(value, list)]
    update = (torch.rand(3),) if metric is torchmetrics.CatMetric else (torch.rand(3), torch.tensor([0, 1, 1]))
    for _ in range(4):
        module["metric"].update(*update)
    before = module["metric"].compute()
    start = Snapshot(module)
    module["metric"].update(*update)
    gathered = [getattr(module["metric"], name) for name in states]
    assert [len(tensors) for tensors in gathered] == [5] * len(states)
    start.restore()
    assert [len(getattr(module["metric"], name)) for name in states] == [4] * len(states)
    assert differences(module["metric"].compute(), before) == []
    for name in states:
        tensor = getattr(module["metric"], name)[0]
        tensor.zero_()
        start.restore()
        assert not tensor.any()


def test_shared_and_self_referring_state() -> None:
    module = nn.Identity()
    shared = [1]
    module.one, module.two = shared, {"same": shared}
    module.loop = [module]
    module.loop.append(module.loop)
    start = Snapshot(module)
    shared.append(2)
    start.restore()
    assert module.one is module.two["same"]
    assert shared == [1]
    assert module.loop[1] is module.loop


def test_history_of_results_is_not_copied() -> None:
    module = nn.Linear(1, 1)
    module.last = module(torch.ones(1))
    start = Snapshot(module, list(module.parameters()))
    with torch.no_grad():
        changed = module.last.add_(1).clone()
    module.last = None
    start.restore()
    assert module.last.grad_fn is not None
    assert torch.equal(module.last, changed)


def test_a_module_outside_of_the_tree_that_shares_a_part_with_it_hides_no_other() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = (nn.BatchNorm1d(3) for _ in range(3))
            self.unregistered = [nn.Sequential(nn.BatchNorm1d(3), self.shared, nn.BatchNorm1d(3))]

    net = Net()
    snapshot = Snapshot(net)
    parts = [net.first, net.last, *net.unregistered[0]]
    for part in parts:
        part(torch.randn(4, 3))
    snapshot.restore()
    for part in parts:
        assert part.num_batches_tracked == 0
        assert not part.running_mean.any()


def test_what_belongs_to_the_trainer_is_left_alone() -> None:
    module, made = Stateful(), trainer()
    snapshot = Snapshot(module)
    module.trainer = made
    snapshot.restore()
    assert module.trainer is made
