"""Modules, dictionaries and lists: which objects they hold, read without a loop in Python, and put back."""

from collections.abc import KeysView, ValuesView
from functools import lru_cache
from itertools import chain, islice
from operator import call, itemgetter, methodcaller
from typing import Any, NamedTuple

from lightning_same.replay.identity import same_objects

REGISTERED = ("_parameters", "_buffers", "_modules")
"""Where a module keeps what is registered with it."""

_shallow_copy_of = methodcaller("copy")


class Contents(NamedTuple):
    """The objects in `Containers` at one moment, in their order.

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


class Containers:
    """What holds other objects: modules by their attributes, dictionaries, lists, sets and deques."""

    def __init__(self) -> None:
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

    def add_module(self, attributes: dict[str, Any], unheld: frozenset[str]) -> list[str]:
        """Hold a module's attributes, and what is registered with it.

        Args:
            attributes: the module's ``__dict__``.
            unheld: names that are left out, but for those of `REGISTERED`.

        Returns:
            The names of the others.
        """
        names = [name for name in attributes if name not in unheld]
        self._module_dicts.append(attributes)
        self._getters.append(itemgetter(*REGISTERED, *names))
        self._names.append((*REGISTERED, *names))
        self._unheld_names.append(unheld)
        for name in REGISTERED:
            if attributes[name]:
                self.add_dict(attributes[name])
            else:
                self._empty.append(attributes[name])
        return names

    def add_dict(self, dictionary: dict[Any, Any]) -> ValuesView[Any]:
        """Hold a dictionary by views, which show what is there at any time.

        Those of a built-in class: one of the user's may leave some out, or change their order.

        Returns:
            The view of its values.
        """
        cls: Any = type(dictionary)
        kind: Any = _built_in(cls)
        self._dicts.append(dictionary)
        self._keys.append(kind.keys(dictionary))
        self._values.append(kind.values(dictionary))
        return self._values[-1]

    def add_list(self, container: Any) -> None:
        """Hold a list, set or deque."""
        self._lists.append(container)

    def add_unseen(self, container: Any) -> None:
        """Hold a container by a copy of it each time."""
        self._unseen.append(container)

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

    def contents_if_whole(self) -> Contents | None:
        """The same; None if a module has lost an attribute, or has got its first parameter, buffer or submodule."""
        if any(self._empty):
            return None
        try:
            return self.contents()
        except KeyError:
            return None

    def put_back(self, held: Contents, now: Contents | None = None) -> None:
        """Put the objects back where they were.

        Args:
            held: where they were.
            now: where they are, if that is known.
        """
        now = now or self.contents_if_whole()
        if now is None or not now.same_as(held):
            self._put_back_all(held)
        for container, items in zip(self._unseen, held.unseen, strict=True):
            refill(container, items)

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


@lru_cache(maxsize=256)
def is_refillable(kind: type) -> bool:
    """Whether a container takes its items back; a subclass may forbid that, as the outputs of some models do."""
    return kind.__module__ in ("builtins", "collections") or not any(
        name in vars(cls)
        for cls in kind.__mro__
        if cls.__module__ not in ("builtins", "collections", "collections.abc", "typing")
        for name in ("clear", "copy", "update", "extend", "__setitem__")
    )


@lru_cache(maxsize=256)
def shows_all(kind: type) -> bool:
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
