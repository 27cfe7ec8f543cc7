"""What is in a module and its submodules: looked for once, and then seen at once to be the same."""

import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, KeysView, Sequence, ValuesView
from functools import cached_property, lru_cache, partial, singledispatch
from itertools import chain, compress, islice
from operator import attrgetter, call, is_, is_not, itemgetter, methodcaller
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_same.gradients.sharding import any_sharded, locals_of
from lightning_same.replay.batch import ATOMS, overlaps, storage_of
from lightning_same.replay.identity import same_objects
from lightning_same.replay.modules import modules_of, parameters_of
from lightning_same.replay.tensor_copies import TensorGroups, addresses_of
from lightning_same.trainer.distributed import sharded_modules

REGISTERED = ("_parameters", "_buffers", "_modules")
"""Where a module keeps what is registered with it."""

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
_shallow_copy_of = methodcaller("copy")

Undo = Callable[[], None]


class Contents(NamedTuple):
    """The objects in a tree of modules at one moment, in the order of its `Inventory`.

    Attributes:
        objects: the values of the modules' attributes, then those of dictionaries, among them those of registered
            parameters, buffers and submodules, then the items of lists, sets and deques.
        keys: of the dictionaries.
        sizes: how many attributes each module has, with those that are not held, and how many items each dictionary
            and each list.
        unseen: copies of containers that are not looked into.
    """

    objects: tuple[Any, ...]
    keys: tuple[Any, ...]
    sizes: list[int]
    unseen: list[Any]

    def same_layout_as(self, others: "Contents") -> bool:
        """Whether each module, dictionary and list holds as many objects, under the same keys."""
        return self.sizes == others.sizes and same_objects(self.keys, others.keys)

    def same_as(self, others: "Contents") -> bool:
        """Whether the same objects are in the same places."""
        if self.objects is others.objects:  # One tuple for two: then the layout was the same.
            return True
        return same_objects(self.objects, others.objects) and self.same_layout_as(others)

    def without_unseen(self) -> "Contents":
        """The same without the copies, which would keep alive what a container has let go of."""
        return self._replace(unseen=[])


class Inventory:
    """All that a forward may change in a module and its submodules, in lists that are read without a loop in Python.

    Args:
        module: the root of the tree. FSDP2 must have resharded its parameters.
        unheld: parameters that somebody else takes care of; they and what shares their memory are left out.
        left_out: names of attributes that are left out.

    Attributes:
        modules: the root and all submodules.
        sharded: those whose parameters FSDP2 shards.
        params: registered parameters; one that several modules share comes once for each.
        states: all tensors that a forward may write to, in their groups.
        frozen: parameters of those that are not in ``unheld``, if they are small enough to be held.
        devices: those of ``unheld``.
        serves_once: whether there is something that is left out now and may be held later.
    """

    def __init__(self, module: nn.Module, unheld: Sequence[Tensor], left_out: frozenset[str]) -> None:
        self.modules = modules_of(module)
        self.sharded = sharded_modules(self.modules)
        self._left_out, self._unheld = left_out, unheld
        self._module_dicts: list[dict[str, Any]] = []
        self._getters: list[itemgetter[Any]] = []
        self._names: list[tuple[str, ...]] = []
        self._unheld_names: list[frozenset[str]] = []
        self._dicts: list[dict[Any, Any]] = []
        self._keys: list[KeysView[Any]] = []
        self._values: list[ValuesView[Any]] = []
        self._empty: list[dict[Any, Any]] = []  # As most dictionaries of modules are, which is seen sooner.
        self._lists: list[Any] = []
        self._unseen: list[Any] = []
        self._undo_makers: list[Callable[[], Undo | None]] = []
        self._tensors: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        self.serves_once = False
        self.add_modules(self.modules)
        self.params = parameters_of(self.modules)
        self.frozen = self._frozen_to_hold()
        self.states = TensorGroups(self._tensors.values())
        # A parameter that is not there yet has no address.
        self.serves_once |= any(map(nn.parameter.is_lazy, chain(unheld, self.params)))
        self._located = list({id(param): param for param in chain(unheld, self.params)}.values())
        self._is_sharded = any_sharded(self._located)
        self._addresses = [] if self.serves_once else self._where_parameters_are()
        self.devices = frozenset(param.device for param in unheld)
        self._latest = self.contents().without_unseen()
        del self._seen, self._tensors

    def contents(self) -> Contents:
        """The objects that are there now.

        Raises:
            KeyError: if a module has lost an attribute.
        """
        attributes = map(call, self._getters, self._module_dicts)
        return Contents(
            objects=tuple(chain.from_iterable(chain(attributes, self._values, self._lists))),
            keys=tuple(chain.from_iterable(self._keys)),
            sizes=list(map(len, chain(self._module_dicts, self._keys, self._lists))),
            unseen=list(map(_shallow_copy_of, self._unseen)),
        )

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
        try:
            now = self.contents()
        except KeyError:
            return None
        if any(self._empty):
            return None
        latest = self._latest
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

    def put_back(self, held: Contents, now: Contents | None = None) -> None:
        """Put the objects back where they were.

        Args:
            held: where they were.
            now: where they are, if that is known.
        """
        if not self._are_there(held, now):
            self._put_back_all(held)
        for container, items in zip(self._unseen, held.unseen, strict=True):
            refill(container, items)

    def _are_there(self, held: Contents, now: Contents | None) -> bool:
        try:
            now = now or self.contents()
        except KeyError:
            return False
        return not any(self._empty) and now.same_as(held)

    def _put_back_all(self, held: Contents) -> None:
        objects, keys, sizes = iter(held.objects), iter(held.keys), iter(held.sizes)
        for now, names, unheld in zip(self._module_dicts, self._names, self._unheld_names, strict=True):
            now.update(zip(names, islice(objects, len(names)), strict=True))
            if len(now) > next(sizes):
                for name in now.keys() - unheld - set(names):
                    del now[name]
        for filled in self._empty:
            filled.clear()
        for dictionary in self._dicts:
            count = next(sizes)
            refill(dictionary, dict(zip(islice(keys, count), islice(objects, count), strict=True)))
        for container in self._lists:
            refill(container, list(islice(objects, next(sizes))))

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
            names = (*REGISTERED, *[name for name in attributes if name not in unheld])
            self._module_dicts.append(attributes)
            self._getters.append(itemgetter(*names))
            self._names.append(names)
            self._unheld_names.append(unheld)
            for buffer in attributes["_buffers"].values():
                if buffer is not None:
                    self.add_tensor(buffer)
            for name in REGISTERED:
                if attributes[name]:
                    self._add_dict(attributes[name])
                else:
                    self._empty.append(attributes[name])
            # A metric's list state grows by appending; to copy what it has gathered each time would be quadratic.
            states: Any = module._defaults if is_metric else ()
            for name in names[len(REGISTERED) :]:
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
            self._unseen.append(container)
            self.serves_once |= gathered  # When it is emptied, it is looked into.
            return
        kind: Any = type(container)
        if isinstance(container, dict):
            items = self._add_dict(container)
        elif _shows_all(kind):
            self._lists.append(container)
        else:
            self._unseen.append(container)
            self.serves_once = True
            items = container.copy()  # A copy has what iterating does not show.
        for item in items:
            self.add(item)

    def _add_dict(self, dictionary: dict[Any, Any]) -> ValuesView[Any]:
        """Read a dictionary by views of its own, which show what is there at any time.

        Those of a built-in class: one of the user's may leave some out, or change their order.
        """
        cls: Any = type(dictionary)
        kind: Any = _built_in(cls)
        self._dicts.append(dictionary)
        self._keys.append(kind.keys(dictionary))
        self._values.append(kind.values(dictionary))
        return self._values[-1]

    def add_undo(self, make: Callable[[], Undo | None]) -> None:
        """Hold something by a function that makes its undo; None where there is nothing to be undone."""
        self._undo_makers.append(make)

    def _where_parameters_are(self) -> list[int]:
        """What shares the memory of an unheld parameter is left out, so each must be where it was."""
        if not self._is_sharded:
            return addresses_of(self._located)
        with torch.no_grad():
            return addresses_of(locals_of(self._located))

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
    if _is_refillable(type(value)):
        inventory.add_container(value, value.values(), deep)


@hold.register(list)
@hold.register(deque)
@hold.register(set)
def _(value: list[Any] | deque[Any] | set[Any], inventory: Inventory, deep: bool) -> None:
    if _is_refillable(type(value)):
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


@lru_cache(maxsize=256)
def _is_refillable(kind: type) -> bool:
    """Whether a container takes its items back; a subclass may forbid that, as the outputs of some models do."""
    return kind.__module__ in ("builtins", "collections") or not any(
        name in vars(cls)
        for cls in kind.__mro__
        if cls.__module__ not in ("builtins", "collections", "collections.abc", "typing")
        for name in ("clear", "copy", "update", "extend", "__setitem__")
    )


@lru_cache(maxsize=256)
def _shows_all(kind: type) -> bool:
    """Whether iterating over a list, set or deque shows all items; a class of the user's may show some."""
    base: Any = _built_in(kind)
    return all(getattr(kind, name) is getattr(base, name) for name in ("__iter__", "__len__"))


def _built_in(kind: type) -> type:
    """The class of Python's own from which a container's class is derived."""
    return next(cls for cls in kind.__mro__ if cls.__module__ in ("builtins", "collections"))


def refill(container: Any, items: Any) -> None:
    """Give the same container object its former items."""
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items)


def _same(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(now) == len(before) and all(map(is_, now, before))


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    # Not the bound method, which torch.compile cannot see through.
    generator.set_state(state)
