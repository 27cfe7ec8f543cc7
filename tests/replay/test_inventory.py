"""The inventory of a module: when it is made anew, and that an old one misses nothing."""

import copy
import random
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from support.fits import differences
from torch import Tensor, nn

from lightning_same.replay.inventory import UNHELD
from lightning_same.replay.latest_inventory import LatestInventory
from lightning_same.replay.modules import modules_of
from lightning_same.replay.snapshot import Snapshot


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.layer, self.norm, self.head = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(8, 8)
        self.register_buffer("table", torch.zeros(2, 2))
        self.count, self.mean, self.array = 0, torch.zeros(2), np.zeros(2)
        self.plain, self.names = [0, "a"], {"a": 1, "b": torch.zeros(1)}
        self.history: list[Any] = [torch.zeros(1), [1]]


def unheld(net: nn.Module) -> list[Tensor]:
    return [param for param in net.parameters() if param.requires_grad]


def seen(net: nn.Module) -> list[Any]:
    """All that a snapshot holds, by value: of each module what is registered, by name, and what else there is."""
    trained = {id(param) for param in unheld(net)}
    values = []
    for module in modules_of(net):
        held = {name: value for name, value in sorted(vars(module).items()) if name not in UNHELD}
        tensors = {**module._parameters, **module._buffers}
        values.append([list(module._modules), list(tensors), list(held), list(held.values())])
        values.append([tensor for tensor in tensors.values() if tensor is not None and id(tensor) not in trained])
    return copy.deepcopy(values)


def disturb(net: Any) -> None:
    """Change all that there is."""
    trained = {id(param) for param in unheld(net)}
    for module in modules_of(net):
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and id(tensor) not in trained:
                tensor.data.add_(1)
        for name, value in list(vars(module).items()):
            if name not in UNHELD:
                disturb_value(value)
                if isinstance(value, int | float | str):
                    setattr(module, name, None)
        module.new = torch.ones(1)
    net.add_module("another", nn.Linear(1, 1))
    net.register_buffer("born", torch.ones(1))
    net._parameters["spare"] = nn.Parameter(torch.ones(1))


def disturb_value(value: Any) -> None:
    if isinstance(value, Tensor | np.ndarray):
        value += 1
    elif isinstance(value, list):
        for item in value:
            disturb_value(item)
        value.append(3)
    elif isinstance(value, dict):
        for item in value.values():
            disturb_value(item)
        value["new"] = 3


def a_history(net: Net) -> None:
    net.table.mul_(net.layer.weight)


def nothing(net: Net) -> None:
    pass


def a_number(net: Net) -> None:
    net.count += 1000


def a_number_in_a_list(net: Net) -> None:
    net.plain[0] += 1000


def a_value_in_place(net: Net) -> None:
    net.table += 1
    net.mean += 1
    net.names["b"] += 1
    net.array += 1


def a_tensor(net: Net) -> None:
    net.mean = net.mean + 1


def a_buffer(net: Net) -> None:
    net.table = net.table + 1


def the_memory_of_a_buffer(net: Net) -> None:
    net.table.data = net.table.data + 1


def a_longer_list(net: Net) -> None:
    net.history.append(torch.zeros(1))


def an_item_between_lists(net: Net) -> None:
    inner: Any = net.history[1]
    inner.insert(0, net.history.pop(0))


def a_key(net: Net) -> None:
    net.names["c"] = net.names.pop("b")


def a_new_attribute(net: Net) -> None:
    net.other = [torch.zeros(1)]


def an_attribute_less(net: Net) -> None:
    del net.mean


def another_attribute(net: Net) -> None:
    del net.mean
    net.median = torch.zeros(2)


def a_module(net: Net) -> None:
    net.more = nn.BatchNorm1d(2)


def a_module_less(net: Net) -> None:
    del net.norm


def other_buffers(net: Net) -> None:
    net._buffers = {"table": torch.ones(2, 2)}


def a_first_buffer(net: Net) -> None:
    net.layer.register_buffer("steps", torch.zeros(()))


def another_shape_in_the_same_memory(net: Net) -> None:
    net.mean.resize_(1)


def other_strides_in_the_same_memory(net: Net) -> None:
    net.table.t_()


def the_memory_of_a_frozen_weight(net: Net) -> None:
    net.teacher.weight.data = net.teacher.weight.data.clone()


def a_shared_memory(net: Net) -> None:
    net.layer.weight.data = net.table.data


def a_frozen_weight(net: Net) -> None:
    net.layer.weight.requires_grad_(False)


FOUND_AT_ONCE = [nothing, a_number, a_number_in_a_list, a_value_in_place]
LOOKED_FOR = [
    a_tensor,
    a_buffer,
    the_memory_of_a_buffer,
    a_longer_list,
    an_item_between_lists,
    a_key,
    a_new_attribute,
    an_attribute_less,
    another_attribute,
    a_module,
    a_module_less,
    other_buffers,
    a_first_buffer,
    another_shape_in_the_same_memory,
    other_strides_in_the_same_memory,
    the_memory_of_a_frozen_weight,
    a_history,
    a_shared_memory,
    a_frozen_weight,
]


@pytest.mark.parametrize("change", [*FOUND_AT_ONCE, *LOOKED_FOR])
def test_when_it_is_made_anew(change: Callable[[Net], None]) -> None:
    net, latest = Net(), LatestInventory()
    before, _ = latest.of(net, unheld(net), UNHELD)
    change(net)
    assert (latest.of(net, unheld(net), UNHELD)[0] is before) == (change in FOUND_AT_ONCE)


# A result of the forward is replaced, never written to, and what shares a weight's memory goes with the weight.
HELD = [change for change in [*FOUND_AT_ONCE, *LOOKED_FOR] if change not in (a_history, a_shared_memory)]


@pytest.mark.parametrize("change", HELD)
def test_after_any_change_all_that_is_there_then_comes_back(change: Callable[[Net], None]) -> None:
    net, latest = Net(), LatestInventory()
    Snapshot(net, unheld(net), latest=latest)
    change(net)
    start, before = Snapshot(net, unheld(net), latest=latest), seen(net)
    disturb(net)
    assert len(differences(before, seen(net))) > 0
    start.restore()
    assert differences(before, seen(net)) == []


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_many_changes_one_after_another(seed: int, known: bool) -> None:
    net, latest = Net(), LatestInventory()
    for change in random.Random(seed).sample(HELD, len(HELD)):
        try:
            change(net)
        except (AttributeError, KeyError, IndexError):
            continue  # An earlier change has taken away what this one changes.
        outer, before = Snapshot(net, unheld(net), latest=latest), seen(net)
        disturb(net)
        inner, between = Snapshot(net, unheld(net), latest=latest), seen(net)
        outer.restore(inner if known else None)
        assert differences(before, seen(net)) == []
        disturb(net)
        inner.restore()
        assert differences(between, seen(net)) == []
        outer.restore()
        assert differences(before, seen(net)) == []


@pytest.mark.parametrize("change", [change for change in HELD if change is not another_shape_in_the_same_memory])
def test_where_the_state_now_is_known_it_comes_back_from_there(change: Callable[[Net], None]) -> None:
    net, latest = Net(), LatestInventory()
    trained = unheld(net)
    start, before, draw = Snapshot(net, trained, latest=latest), seen(net), random.random()
    change(net)
    net.head.weight.requires_grad_(False)
    here, now = Snapshot(net, trained, latest=latest), seen(net)
    start.restore(here)
    assert random.random() == draw
    assert differences(before, seen(net)) == []
    assert all(param.requires_grad for param in trained)
    here.restore()
    assert differences(now, seen(net)) == []
    assert not net.head.weight.requires_grad


def held_anew(net: Net, latest: LatestInventory, tensor: Tensor) -> bool:
    """Whether a snapshot puts a tensor back."""
    start, before = Snapshot(net, unheld(net), latest=latest), tensor.clone()
    tensor.data.add_(1)
    start.restore()
    return torch.equal(tensor, before)


def test_a_frozen_weight_is_held_while_it_shares_no_memory_with_a_trained_one() -> None:
    net, latest = Net(), LatestInventory()
    teacher = net.teacher.weight
    assert held_anew(net, latest, teacher)
    teacher.data = net.layer.weight.data
    assert not held_anew(net, latest, teacher)
    teacher.data = teacher.data.clone()
    assert held_anew(net, latest, teacher)
    net.layer.weight.data = teacher.data
    assert not held_anew(net, latest, teacher)


@pytest.mark.parametrize("gathered", [[torch.zeros(1)] * 2000, [torch.zeros(50000)]])
def test_a_list_that_was_too_large_is_looked_into_when_it_has_been_emptied(gathered: list[Tensor]) -> None:
    net, latest = Net(), LatestInventory()
    net.history = gathered
    Snapshot(net, unheld(net), latest=latest)
    net.history = [*gathered]
    Snapshot(net, unheld(net), latest=latest)
    net.history.clear()
    net.history.append(torch.zeros(1))
    assert held_anew(net, latest, net.history[0])


def test_a_result_lives_no_longer_than_its_module_keeps_it() -> None:
    net, latest = Net(), LatestInventory()
    net.mean = net.layer(torch.ones(2))
    alive = weakref.ref(net.mean)
    Snapshot(net, unheld(net), latest=latest)
    net.mean = torch.zeros(2)
    assert alive() is None
    Snapshot(net, unheld(net), latest=latest)
    alive = weakref.ref(net.mean)
    net.mean = torch.zeros(2)
    latest.forget()
    assert alive() is None


@pytest.mark.parametrize("where", ["table", "values"])
def test_strides_that_have_changed_since_the_snapshot_do_not_mix_values_up(where: str) -> None:
    net = Net()
    net.values = torch.arange(4.0).view(2, 2)
    net.table.copy_(net.values)
    tensor = getattr(net, where)
    start, before = Snapshot(net, unheld(net)), tensor.clone()
    tensor.t_()
    start.restore()
    assert torch.equal(tensor, before)


def test_a_value_moved_after_the_snapshot_is_put_back_where_it_is_now() -> None:
    net = Net()
    start = Snapshot(net, unheld(net))
    moved = net.table
    moved.data = torch.full((2, 2), 5.0).t()
    start.restore()
    assert not moved.any()
    assert net.table is moved


def test_a_result_that_becomes_a_state_is_looked_for() -> None:
    net, latest = Net(), LatestInventory()
    net.mean = net.layer.weight * 2
    Snapshot(net, unheld(net), latest=latest)
    net.mean.detach_()
    start, before = Snapshot(net, unheld(net), latest=latest), net.mean.clone()
    net.mean += 1
    start.restore()
    assert torch.equal(net.mean, before)


def test_it_is_of_one_module_and_of_one_choice_of_attributes() -> None:
    one, two, latest = Net(), Net(), LatestInventory()
    latest.of(one, unheld(one), UNHELD)
    # The same list, so that only the module tells them apart.
    assert list(latest.of(two, unheld(one), UNHELD)[0].modules) == list(modules_of(two))
    before = latest.of(two, unheld(two), UNHELD)[0]
    assert latest.of(two, unheld(two), UNHELD)[0] is before
    assert latest.of(two, unheld(two), UNHELD | {"training"})[0] is not before


def in_coo() -> Tensor:
    return torch.eye(3).to_sparse()


def in_csr() -> Tensor:
    return torch.eye(3).to_sparse_csr()


def with_gaps() -> Tensor:
    return torch.ones(3, 6)[:, ::2]


@pytest.mark.parametrize("kind", [in_coo, in_csr, with_gaps])
@pytest.mark.parametrize("is_moved", [False, True])
def test_a_buffer_that_is_not_dense_comes_back(kind: Callable[[], Tensor], is_moved: bool) -> None:
    net, latest = Net(), LatestInventory()
    net.register_buffer("graph", kind())
    for _ in range(2):
        start, graph, before = Snapshot(net, unheld(net), latest=latest), net.graph, net.graph.to_dense().clone()
        graph.mul_(3)
        if is_moved:
            net.table.data = net.table.data.clone()
        start.restore()
        assert net.graph is graph
        assert torch.equal(graph.to_dense(), before)


@pytest.mark.parametrize("kind", [in_coo, in_csr])
@pytest.mark.parametrize("change", [nothing, the_memory_of_a_buffer, other_strides_in_the_same_memory])
def test_beside_a_sparse_buffer_others_are_seen(kind: Callable[[], Tensor], change: Callable[[Net], None]) -> None:
    net, latest = Net(), LatestInventory()
    net.register_buffer("graph", kind())
    net.table.copy_(torch.arange(4.0).view(2, 2))
    start, before = Snapshot(net, unheld(net), latest=latest), net.table.clone()
    inventory, _ = latest.of(net, unheld(net), UNHELD)
    change(net)
    assert (latest.of(net, unheld(net), UNHELD)[0] is inventory) == (change is nothing)
    start.restore()
    assert torch.equal(net.table, before)


class Record(list[Any]):
    """A list of the user's own, which takes back what it had."""


class Hides(dict[str, Any]):
    """Shows a part of what it holds, in an order of its own."""

    def values(self) -> Any:
        return [value for key, value in self.items() if not key.startswith("_")]

    def keys(self) -> Any:
        return sorted(super().keys())

    def __iter__(self) -> Any:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.values())


class Positive(list[Any]):
    """Iterates over the positive items."""

    def __iter__(self) -> Any:
        return (item for item in super().__iter__() if not isinstance(item, int) or item > 0)

    def __len__(self) -> int:
        return 1


class Closed(dict[str, Any]):
    """Refuses what it is not told in its constructor."""

    def update(self, *_: Any, **__: Any) -> None:
        raise TypeError

    def clear(self) -> None:
        raise TypeError


def test_a_container_of_the_users_own_comes_back_unless_it_forbids_that() -> None:
    net = Net()
    net.record, net.closed = Record([1]), Closed(a=1)
    start = Snapshot(net, unheld(net))
    net.record.append(2)
    net.closed["a"] = 2
    start.restore()
    assert net.record == [1]
    assert net.closed == {"a": 2}


def test_a_container_that_hides_items_comes_back_and_shifts_no_other() -> None:
    net, latest, inner = Net(), LatestInventory(), torch.zeros(1)
    net.table_of_names = Hides(b=1, _hidden=2, a=torch.zeros(1))
    net.positive, net.after, net.last = Positive([1, -2, inner]), ["b0", "b1"], ["c0"]
    net.pairs = OrderedDict(first=1, second=2)
    net.more = nn.Linear(2, 2)
    for _ in range(2):
        start, trained = Snapshot(net, unheld(net), latest=latest), unheld(net)
        net.table_of_names["b"] = 5
        net.table_of_names["_hidden"] = 6
        net.pairs.move_to_end("first")
        net.positive.append(-3)
        inner += 1
        net.after.clear()
        net.last.append("c1")
        start.restore()
        assert dict.items(net.table_of_names) == {"b": 1, "_hidden": 2, "a": torch.zeros(1)}.items()
        assert list(dict.keys(net.table_of_names)) == ["b", "_hidden", "a"]
        assert list(list.__iter__(net.positive)) == [1, -2, 0]
        assert (net.after, net.last) == (["b0", "b1"], ["c0"])
        assert list(net.pairs) == ["first", "second"]
        assert [*net.more._parameters] == ["weight", "bias"]
        assert unheld(net) == trained


def test_a_metric_that_is_reset_lets_go_of_what_it_has_gathered() -> None:
    net, latest = Net(), LatestInventory()
    net.gathered = torchmetrics.CatMetric()
    net.gathered.update(torch.ones(3))
    alive = weakref.ref(net.gathered.value[0])
    for _ in range(2):
        Snapshot(net, unheld(net), latest=latest)
    net.gathered.reset()
    assert alive() is None


def test_a_quantized_tensor_comes_back() -> None:
    net, latest = Net(), LatestInventory()
    net.codes = torch.quantize_per_tensor(torch.tensor([0.0, 1.0]), 0.1, 0, torch.qint8)
    for _ in range(2):
        start = Snapshot(net, unheld(net), latest=latest)
        net.codes.copy_(torch.tensor([3.0, 4.0]))
        start.restore()
        assert torch.allclose(net.codes.dequantize(), torch.tensor([0.0, 1.0]), atol=0.01)
