"""Lists, dicts and metrics that hold objects, those of the user's own classes too."""

import weakref
from collections import OrderedDict
from typing import Any

import torch
import torchmetrics
from support.changing_net import Net, unheld
from torch import nn

from lightning_same.replay.latest_inventory import LatestInventory
from lightning_same.replay.snapshot import Snapshot


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
