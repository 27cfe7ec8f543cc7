"""Snapshot: each kind of state comes back, in the same objects."""

import random
import threading
from collections import OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from nets import differences
from torch import nn

from lightning_same.replay.batch import copy_of
from lightning_same.replay.random_state import NUMPY, PYTHON, Python, Twister
from lightning_same.replay.snapshot import LENGTH_LIMIT, Snapshot


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
            [metric._update_count for metric in self.metrics],
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


def clone(value: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, value)


def test_everything_comes_back_and_is_replayed() -> None:
    module = Stateful()
    module.change()
    objects = {
        name: value for name, value in vars(module).items() if name in ("list", "dict", "deque", "set", "tensor")
    }
    before = clone(module.seen())
    start = Snapshot(module)
    first = module.change()
    after = clone(module.seen())
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


@dataclass
class Sample:
    x: torch.Tensor
    extra: dict[str, Any]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"x": x, "extra": {"n": [1]}},
        lambda x: UserDict(x=x, extra={"n": [1]}),
        lambda x: Sample(x, {"n": [1]}),
        lambda x: SimpleNamespace(x=x, extra={"n": [1]}),
    ],
    ids=["dict", "UserDict", "dataclass", "object"],
)
def test_a_copy_of_a_batch_shares_nothing_with_it(make: Any) -> None:
    batch = [make(torch.ones(2)), torch.ones(2, requires_grad=True) * 2]
    copied = copy_of(batch)
    fields = batch[0] if isinstance(batch[0], dict | UserDict) else vars(batch[0])
    fields["x"].mul_(3)
    fields["extra"]["n"].append(2)
    fields.pop("extra")
    kept = copied[0] if isinstance(copied[0], dict | UserDict) else vars(copied[0])
    assert type(copied[0]) is type(batch[0])
    assert kept["x"].tolist() == [1, 1]
    assert kept["extra"] == {"n": [1]}
    assert copied[1].tolist() == [2, 2]
    assert copied[1].grad_fn is None


def test_a_batch_that_cannot_be_copied_is_named() -> None:
    batch = {"lock": threading.Lock()}
    with pytest.warns(UserWarning, match="The batch, a dict, cannot be copied"):
        assert copy_of(batch) is batch


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
    assert Snapshot(module, list(module["head"].parameters())).nbytes == 0


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
    start.restore()
    assert len(module.long) == LENGTH_LIMIT + 1
    assert start.nbytes == 0


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
    assert start.nbytes == 0
    module.last = None
    start.restore()
    assert module.last.grad_fn is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_accelerators_random_state() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    start = Snapshot(nn.Identity(), device=device)
    first = torch.rand(3, device=device)
    start.restore()
    assert torch.equal(first, torch.rand(3, device=device))


def test_a_copy_of_a_slice_is_no_larger_than_the_slice() -> None:
    data = torch.arange(1000.0)
    copied = copy_of([data[10:14], 3])
    assert copied[0].tolist() == [10, 11, 12, 13]
    assert copied[0].untyped_storage().nbytes() == 16


def test_what_a_batch_shares_its_copy_shares() -> None:
    x, items = torch.zeros(2), [1]
    twice, view, lists = copy_of([x, x]), copy_of({"x": x, "view": x[:1]}), copy_of((items, items))
    assert twice[0] is twice[1]
    view["x"].add_(1)
    assert view["view"].tolist() == [1]
    assert lists[0] is lists[1]
    assert lists[0] is not items


@pytest.mark.parametrize("waiting", [False, True], ids=["", "with a normal number waiting"])
def test_numpys_state_comes_back(waiting: bool) -> None:
    """Also where nobody has drawn since the state was read last, and where its memory does not tell all."""
    before = np.random.get_state()
    try:
        np.random.seed(3)
        if waiting:
            np.random.randn()
        start = Snapshot(nn.Identity())
        only = np.random.randn()  # Where one waits, this leaves the generator's memory as it is.
        start.restore()
        assert np.random.randn() == only
        start.restore()
        for draw in (np.random.randn, np.random.rand, lambda: np.random.seed(3)):
            start = Snapshot(nn.Identity())
            first = [draw(), np.random.randn(), np.random.rand()]
            start.restore()
            assert np.random.get_state()[3] == waiting
            assert [draw(), np.random.randn(), np.random.rand()] == first
            start.restore()
            start.restore()
            assert [draw(), np.random.randn(), np.random.rand()] == first
            start.restore()
    finally:
        np.random.set_state(before)


@pytest.mark.parametrize("waiting", [False, True], ids=["", "with a normal number waiting"])
def test_pythons_state_comes_back(waiting: bool) -> None:
    before = random.getstate()
    try:
        random.seed(3)
        if waiting:
            random.gauss(0, 1)
        start = Snapshot(nn.Identity())
        only = random.gauss(0, 1)
        start.restore()
        assert random.gauss(0, 1) == only
        start.restore()
        for draw in (random.random, lambda: random.gauss(0, 1), lambda: random.seed(3)):
            start = Snapshot(nn.Identity())
            state = random.getstate()
            first = [draw(), random.gauss(0, 1), random.random()]
            start.restore()
            assert random.getstate() == state
            assert (state[2] is not None) == waiting
            assert [draw(), random.gauss(0, 1), random.random()] == first
            start.restore()
            start.restore()
            assert [draw(), random.gauss(0, 1), random.random()] == first
            start.restore()
    finally:
        random.setstate(before)


@pytest.mark.parametrize("twister", [PYTHON, NUMPY], ids=["python", "numpy"])
def test_a_state_is_read_again_only_if_somebody_has_drawn(twister: Twister) -> None:
    draw = random.random if twister is PYTHON else np.random.rand
    random.seed(3)
    np.random.seed(3)
    first = twister.read()
    assert first.memory is not None
    assert twister.read() is first
    draw()
    second = twister.read()
    assert second is not first
    assert second.memory != first.memory


def test_a_normal_number_of_numpys_that_waits_is_seen() -> None:
    """To take it changes nothing in the generator."""
    before = np.random.get_state()
    try:
        np.random.seed(3)
        nobody = NUMPY.read()
        assert nobody.memory is not None
        np.random.randn(2)
        after_two = NUMPY.read()
        NUMPY.write(nobody)
        only = np.random.randn()
        assert NUMPY.read().state["has_gauss"] == 1
        NUMPY.write(after_two)
        assert np.random.get_state()[3] == 0
        NUMPY.write(nobody)
        assert np.random.randn() == only
        waiting = NUMPY.read()
        other = np.random.randn()
        NUMPY.read()
        NUMPY.write(waiting)
        assert NUMPY.read().state["has_gauss"] == 1
        assert np.random.randn() == other
    finally:
        np.random.set_state(before)


def test_a_memory_that_is_not_what_it_should_be_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    twister = Python()
    monkeypatch.setattr(Python, "_memory", lambda self: b"something else")
    first = twister.read()
    assert first.memory is None
    random.random()
    assert twister.read().state != first.state


def test_the_state_of_another_kind_of_numpy_generator_comes_back() -> None:
    twister = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        start = Snapshot(nn.Identity())
        first = np.random.randn(3).tolist()
        start.restore()
        assert np.random.randn(3).tolist() == first
    finally:
        np.random.set_bit_generator(twister)
