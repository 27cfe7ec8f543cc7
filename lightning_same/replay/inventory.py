"""What is in a module and its submodules: looked for once, and then seen at once to be the same."""

import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property, lru_cache, partial, singledispatch
from itertools import chain, compress
from operator import attrgetter, is_, is_not
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_same.gradients.sharding import any_sharded
from lightning_same.replay.batch import ATOMS, overlaps, storage_of
from lightning_same.replay.containers import Containers, Contents, is_refillable, shows_all
from lightning_same.replay.modules import modules_of, parameters_of
from lightning_same.replay.tensor_copies import TensorGroups, addresses_of
from lightning_same.trainer.distributed import sharded_modules

# What torch and Lightning keep for themselves in a module: a forward leaves it alone, or it belongs to the Trainer.
# `log` and `print` are attributes only while they are muted.
UNHELD = (frozenset(vars(nn.Module())) | frozenset(vars(pl.LightningModule())) | {"log", "print"}) - {"training"}
# Set once, when a metric is built; `_defaults` holds a tensor per state, which would be copied for nothing.
OF_METRIC = frozenset({"_defaults", "_persistent", "_reductions"})

SIZE_LIMIT = 4
"""Tensors in one list, and frozen parameters, are held by value while they are at most so many times as large as the
trained parameters: a momentum encoder and a list of averages are; a frozen backbone, and the outputs that an epoch
gathers in a list, are not, and copying them at every step would cost more than the step."""

LENGTH_LIMIT = 1024
"""A list with more items is copied but not looked into, for the same reason."""

_history_of = attrgetter("grad_fn")

Undo = Callable[[], None]


class Inventory:
    """All that a forward may change in a module and its submodules.

    Args:
        module: the root of the tree. FSDP2 must have resharded its parameters.
        unheld: parameters that somebody else takes care of; they and what shares their memory are left out.
        left_out: names of attributes that are left out.

    Attributes:
        containers: what in them holds other objects.
        modules: the root and all submodules.
        sharded: those whose parameters FSDP2 shards.
        params: registered parameters; one that several modules share comes once for each.
        states: all tensors that a forward may write to, in their groups.
        frozen: parameters of those that are not in ``unheld``, if they are small enough to be held.
        unheld_addresses: where those in ``unheld`` are, each once; none if one of the parameters is lazy.
        devices: those of ``unheld``.
        serves_once: whether there is something that is left out now and may be held later.
    """

    def __init__(self, module: nn.Module, unheld: Sequence[Tensor], left_out: frozenset[str]) -> None:
        self.modules = modules_of(module)
        self.sharded = sharded_modules(self.modules)
        self._left_out, self._unheld = left_out, unheld
        self.containers = Containers()
        self._undo_makers: list[Callable[[], Undo | None]] = []
        self._tensors: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        self.serves_once = False
        self.add_modules(self.modules)
        self.params = parameters_of(self.modules)
        self.frozen = self._frozen_to_hold()
        self.states = TensorGroups(self._tensors.values())
        # A parameter that is not there yet has no address.
        has_lazy = any(map(nn.parameter.is_lazy, chain(unheld, self.params)))
        self.serves_once |= has_lazy
        self._located = list({id(param): param for param in chain(unheld, self.params)}.values())
        self._is_sharded = any_sharded(self._located)
        self._addresses = [] if has_lazy else self._where_parameters_are()
        self.unheld_addresses = self._addresses[: len(set(map(id, unheld)))]
        self.devices = frozenset(param.device for param in unheld)
        self._latest = self.containers.contents().without_unseen()
        del self._seen, self._tensors

    def contents_if_same(self, unheld: Sequence[Tensor]) -> Contents | None:
        """The objects that are there now; None if they are others than those that were found.

        Other numbers, strings and the like do not count, for there is nothing in them to be found.

        Args:
            unheld: as it is now.
        """
        if self.serves_once or not _same(unheld, self._unheld) or self._where_parameters_are() != self._addresses:
            return None
        if self.states.have_moved() or any(map(_history_of, self.states.tensors)):
            return None
        now, latest = self.containers.contents_if_whole(), self._latest
        if now is None:
            return None
        if now.same_as(latest):
            # With the same tuple, so that putting back sees at once that nothing has changed.
            return Contents(latest.objects, now.keys, now.sizes, now.unseen)
        if not now.same_layout_as(latest):
            return None
        changed = list(map(is_not, now.objects, latest.objects))
        kinds = map(type, chain(compress(now.objects, changed), compress(latest.objects, changed)))
        if not ATOMS.issuperset(kinds):
            return None
        self._latest = now.without_unseen()
        return now

    def undos(self) -> list[Undo]:
        """For arrays and generators: functions that put back what they hold now."""
        return [undo for make in self._undo_makers if (undo := make()) is not None]

    def add(self, value: Any, deep: bool = True) -> None:
        """Look for what can change inside ``value`` while it stays the same object."""
        if type(value) not in ATOMS and id(value) not in self._seen:
            kind: Any = type(value)
            how = _how_to_hold(kind)
            if how is not None:
                how(value, self, deep)

    def add_modules(self, modules: Iterable[nn.Module]) -> None:
        """Look into modules, but not into their submodules."""
        for module in modules:
            if id(module) in self._seen:
                continue
            self._seen.add(id(module))
            attributes = vars(module)
            kind: Any = type(module)
            is_metric = _is_metric(kind)
            unheld = self._left_out | OF_METRIC if is_metric else self._left_out
            names = self.containers.add_module(attributes, unheld)
            for buffer in attributes["_buffers"].values():
                if buffer is not None:
                    self.add_tensor(buffer)
            # A metric's list state grows by appending; to copy what it has gathered each time would be quadratic.
            states: Any = module._defaults if is_metric else ()
            for name in names:
                if type(value := attributes[name]) not in ATOMS:
                    self.add(value, deep=name not in states)

    def add_tensor(self, tensor: Tensor) -> None:
        """Hold a tensor by value, if it is a state.

        One with a history is a result of the forward: it is replaced, never written to. One that holds an element at
        several places cannot be written to either, nor one that is not there yet.
        """
        if id(tensor) in self._tensors:
            return
        if self._is_state(tensor):
            self._tensors[id(tensor)] = tensor
        else:
            self.serves_once = True

    def _is_state(self, tensor: Tensor) -> bool:
        return (
            not nn.parameter.is_lazy(tensor)
            and tensor.grad_fn is None
            and not tensor.is_inference()
            and not tensor.is_nested
            and storage_of(tensor) not in self._unheld_storages
            and not (tensor.layout == torch.strided and overlaps(tensor))
        )

    def add_container(self, container: Any, items: Collection[Any], deep: bool) -> None:
        """Hold a list, dict, set or deque: its items and, if ``deep``, what can change inside them."""
        self._seen.add(id(container))
        gathered = not isinstance(container, dict) and (
            len(items) > LENGTH_LIMIT
            or sum(item.nbytes for item in items if isinstance(item, Tensor)) > self._size_limit
        )
        if not deep or gathered:
            self.containers.add_unseen(container)
            self.serves_once |= gathered  # When it is emptied, it is looked into.
            return
        kind: Any = type(container)
        if isinstance(container, dict):
            items = self.containers.add_dict(container)
        elif shows_all(kind):
            self.containers.add_list(container)
        else:
            self.containers.add_unseen(container)
            self.serves_once = True
            items = container.copy()  # A copy has what iterating does not show.
        for item in items:
            self.add(item)

    def add_undo(self, make: Callable[[], Undo | None]) -> None:
        """Hold something by a function that makes its undo; None where there is nothing to be undone."""
        self._undo_makers.append(make)

    def _where_parameters_are(self) -> list[int]:
        """What shares the memory of an unheld parameter is left out, so each must be where it was."""
        return addresses_of(self._located, sharded=self._is_sharded)

    def _frozen_to_hold(self) -> list[Tensor]:
        """The parameters that nobody else takes care of; none if they are too large."""
        unheld = {id(param) for param in self._unheld}
        frozen = [
            param
            for param in self.params
            if id(param) not in unheld
            and not nn.parameter.is_lazy(param)
            and storage_of(param) not in self._unheld_storages
        ]
        if not frozen or sum(param.nbytes for param in frozen) > self._size_limit:
            return []
        # A shared one comes once for each module, and a module's attribute may hold it, too.
        return [param for param in dict.fromkeys(frozen) if id(param) not in self._tensors and self._is_state(param)]

    @cached_property
    def _unheld_storages(self) -> set[int]:
        return {storage_of(param) for param in self._unheld}

    @cached_property
    def _size_limit(self) -> int:
        return SIZE_LIMIT * sum(param.nbytes for param in self._unheld) if self._unheld else sys.maxsize


@singledispatch
def hold(value: Any, inventory: Inventory, deep: bool) -> None:
    """Hold what can change inside a value; by default nothing: it is held by reference."""


@hold.register
def _(value: nn.Module, inventory: Inventory, deep: bool) -> None:
    inventory.add_modules(modules_of(value))


@hold.register
def _(value: Tensor, inventory: Inventory, deep: bool) -> None:
    if not isinstance(value, nn.Parameter):
        inventory.add_tensor(value)


@hold.register
def _(value: dict, inventory: Inventory, deep: bool) -> None:  # type: ignore[type-arg]
    if is_refillable(type(value)):
        inventory.add_container(value, value.values(), deep)


@hold.register(list)
@hold.register(deque)
@hold.register(set)
def _(value: list[Any] | deque[Any] | set[Any], inventory: Inventory, deep: bool) -> None:
    if is_refillable(type(value)):
        inventory.add_container(value, value, deep)


@hold.register
def _(value: tuple, inventory: Inventory, deep: bool) -> None:  # type: ignore[type-arg]
    for item in value:
        inventory.add(item)


@hold.register
def _(value: np.ndarray, inventory: Inventory, deep: bool) -> None:
    inventory.add_undo(lambda: partial(np.copyto, value, value.copy()) if value.flags.writeable else None)


@hold.register
def _(value: torch.Generator, inventory: Inventory, deep: bool) -> None:
    inventory.add_undo(lambda: partial(_set_state, value, value.get_state()))


@hold.register
def _(value: random.Random, inventory: Inventory, deep: bool) -> None:
    inventory.add_undo(lambda: partial(value.setstate, value.getstate()))


@hold.register
def _(value: np.random.Generator, inventory: Inventory, deep: bool) -> None:
    inventory.add_undo(lambda: partial(setattr, value.bit_generator, "state", value.bit_generator.state))


@hold.register
def _(value: np.random.RandomState, inventory: Inventory, deep: bool) -> None:
    inventory.add_undo(lambda: partial(value.set_state, value.get_state()))


@lru_cache(maxsize=1024)
def _how_to_hold(kind: type) -> Callable[[Any, Inventory, bool], None] | None:
    """`hold` for values of this type; None where there is nothing to hold."""
    how: Any = hold.dispatch(kind)
    return None if how is hold.dispatch(object) else how


@lru_cache(maxsize=1024)
def _is_metric(kind: type) -> bool:
    return issubclass(kind, torchmetrics.Metric)


def _same(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(now) == len(before) and all(map(is_, now, before))


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    # Not the bound method, which torch.compile cannot see through.
    generator.set_state(state)
