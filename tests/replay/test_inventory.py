"""The inventory of a module: when it is made anew, and that an old one misses nothing."""

import random
import weakref
from collections.abc import Callable

import pytest
import torch
from support.changing_net import (
    FOUND_AT_ONCE,
    HELD,
    LOOKED_FOR,
    Net,
    another_shape_in_the_same_memory,
    disturb,
    nothing,
    other_strides_in_the_same_memory,
    seen,
    the_memory_of_a_buffer,
    unheld,
)
from support.fits import differences
from torch import Tensor

from lightning_same.replay.inventory import UNHELD
from lightning_same.replay.latest_inventory import LatestInventory
from lightning_same.replay.modules import modules_of
from lightning_same.replay.snapshot import Snapshot


@pytest.mark.parametrize("change", [*FOUND_AT_ONCE, *LOOKED_FOR])
def test_when_it_is_made_anew(change: Callable[[Net], None]) -> None:
    net, latest = Net(), LatestInventory()
    before, _ = latest.of(net, unheld(net), UNHELD)
    change(net)
    assert (latest.of(net, unheld(net), UNHELD)[0] is before) == (change in FOUND_AT_ONCE)


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


def test_a_quantized_tensor_comes_back() -> None:
    net, latest = Net(), LatestInventory()
    net.codes = torch.quantize_per_tensor(torch.tensor([0.0, 1.0]), 0.1, 0, torch.qint8)
    for _ in range(2):
        start = Snapshot(net, unheld(net), latest=latest)
        net.codes.copy_(torch.tensor([3.0, 4.0]))
        start.restore()
        assert torch.allclose(net.codes.dequantize(), torch.tensor([0.0, 1.0]), atol=0.01)
