"""A module with every kind of state that a snapshot holds, and what may change in it between two snapshots."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_same.replay.inventory import UNHELD
from lightning_same.replay.modules import modules_of


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

# A result of the forward is replaced, never written to, and what shares a weight's memory goes with the weight.
HELD = [change for change in [*FOUND_AT_ONCE, *LOOKED_FOR] if change not in (a_history, a_shared_memory)]
