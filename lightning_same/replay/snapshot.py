"""Capture and replay of everything that a forward may change, so that pass two sees the world as pass one did."""

import random
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_same.replay.batch import ATOMS, overlaps, storage_of
from lightning_same.replay.random_state import random_state

# What torch and Lightning keep for themselves in a module: a forward leaves it alone, or it belongs to the Trainer.
INTERNAL = frozenset(vars(nn.Module())) | frozenset(vars(pl.LightningModule()))
# Set once, when a metric is built; `_defaults` holds a tensor per state, which would be copied for nothing.
METRIC_INTERNAL = INTERNAL | {"_defaults", "_persistent", "_reductions"}
KINDS: tuple[type, ...] = (
    nn.Module,
    Tensor,
    dict,
    list,
    deque,
    set,
    tuple,
    np.ndarray,
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
)
"""What a snapshot looks into: only these can change while they stay the same object."""
ROOM = 4
"""Tensors in one list, and frozen parameters, are held by value while they are at most so many times as large as the
trained parameters: a momentum encoder and a list of averages are; a frozen backbone, and the outputs that an epoch
gathers in a list, are not, and copying them at every step would cost more than the step."""
LONG = 1024
"""A list with more items is copied but not looked into, for the same reason."""


class Attributes(NamedTuple):
    """Those of one module.

    Attributes:
        now: the module's own dictionary.
        internal: names in it that are not held.
        held: the others, with their values.
        size: how many there are in all.
    """

    now: dict[str, Any]
    internal: frozenset[str]
    held: dict[str, Any]
    size: int


class Snapshot:
    """The state of a module and of the random number generators at one moment.

    Held by value: buffers, persistent or not; tensors and numpy arrays in attributes of the module and its submodules;
    lists, dicts, sets and deques there, nested ones too; torchmetrics states; parameters that are not trained, such as
    those of a momentum encoder; generators held as attributes; the global random state of torch (CPU, and the device
    given), Python and numpy. Other attributes (numbers, strings, the user's own objects) are held by reference: a
    counter on the module is put back, one inside an object of the user's is not. For the batch, see `copy_of`.

    Args:
        module: whose state to take.
        trained: parameters that somebody else takes care of; they and what shares their memory are left alone.
        device: the accelerator whose random state belongs to it, if any.
    """

    def __init__(self, module: nn.Module, trained: Sequence[Tensor] = (), device: torch.device | None = None) -> None:
        self._undo = random_state(device)
        self._attributes: list[Attributes] = []
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: set[int] = set()
        self._trained = trained
        self._take_modules(_modules(module))
        known = {id(param) for param in trained}
        frozen = [
            param
            for param in parameters_of(module)
            if id(param) not in known and not nn.parameter.is_lazy(param) and storage_of(param) not in self._theirs
        ]
        if frozen and sum(param.nbytes for param in frozen) <= self._room:
            for param in frozen:
                self._take_tensor(param)
        del self._seen

    @cached_property
    def _theirs(self) -> set[int]:
        """The memory of the trained parameters."""
        return {storage_of(param) for param in self._trained}

    @cached_property
    def _room(self) -> int:
        return ROOM * sum(param.nbytes for param in self._trained) if self._trained else sys.maxsize

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back. May be called many times."""
        for undo in self._undo:
            undo()
        for attributes, internal, held, size in self._attributes:
            attributes.update(held)
            if len(attributes) > size:
                for name in attributes.keys() - internal - held.keys():
                    del attributes[name]
        # Through `.data` the copy leaves version counters alone: a graph that the user keeps across the two passes
        # stays usable, for once all is restored its saved tensors have the values they had.
        pairs = [(tensor.data, value) for tensor, value in self._tensors.values() if _changed(tensor, value)]
        if pairs:
            torch._foreach_copy_([tensor for tensor, _ in pairs], [value for _, value in pairs])

    def _take_modules(self, modules: Iterable[nn.Module]) -> None:
        for each in modules:
            if id(each) not in self._seen:
                self._seen.add(id(each))
                if each._buffers:
                    self._take_container(each._buffers, each._buffers.values(), deep=True)
                self._take_attributes(each)

    def _take_attributes(self, module: nn.Module) -> None:
        metric = torchmetrics.Metric in type(module).__mro__
        internal = METRIC_INTERNAL if metric else INTERNAL
        states: Any = module._defaults if metric else ()
        attributes = vars(module)
        held = {name: value for name, value in attributes.items() if name not in internal}
        self._attributes.append(Attributes(attributes, internal, held, len(attributes)))
        for name, value in held.items():
            if type(value) not in ATOMS:
                # A metric's list state grows by appending; to copy what it has gathered each time would be quadratic.
                self._take(value, deep=name not in states)

    def _take(self, value: Any, deep: bool = True) -> None:
        """Take what can change inside ``value``."""
        kind = _kind_of(value.__class__)
        if kind is None or id(value) in self._seen:
            return
        if kind is nn.Module:
            self._take_modules(_modules(value))
            return
        if kind is Tensor:
            if not isinstance(value, nn.Parameter):
                self._take_tensor(value)
            return
        self._seen.add(id(value))
        if kind is dict:
            self._take_container(value, value.values(), deep)
        elif kind in (list, deque, set):
            self._take_container(value, value, deep)
        elif kind is tuple:
            for item in value:
                self._take(item)
        elif kind is np.ndarray:
            if value.flags.writeable:
                self._undo.append(partial(np.copyto, value, value.copy()))
        elif kind is torch.Generator:
            self._undo.append(partial(_set_generator, value, value.get_state()))
        elif kind is random.Random:
            self._undo.append(partial(value.setstate, value.getstate()))
        elif kind is np.random.Generator:
            self._undo.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif kind is np.random.RandomState:
            self._undo.append(partial(value.set_state, value.get_state()))

    def _take_tensor(self, value: Tensor) -> None:
        # A tensor with a history is a result of the forward, not a state: it is replaced, never written to. One that
        # holds an element at several places cannot be written to either, nor one that is not there yet.
        if (
            not nn.parameter.is_lazy(value)
            and value.grad_fn is None
            and not value.is_inference()
            and not value.is_nested
            and storage_of(value) not in self._theirs
            and not (value.layout == torch.strided and overlaps(value))
        ):
            self._tensors.setdefault(id(value), (value, value.detach().clone()))

    def _take_container(
        self, container: dict[Any, Any] | list[Any] | deque[Any] | set[Any], items: Iterable[Any], deep: bool
    ) -> None:
        self._undo.append(partial(_refill, container, container.copy()))
        gathered = not isinstance(container, dict) and (
            len(container) > LONG or sum(item.nbytes for item in items if isinstance(item, Tensor)) > self._room
        )
        if deep and not gathered:
            for item in items:
                self._take(item)


def parameters_of(module: nn.Module) -> list[Tensor]:
    """As ``module.parameters()``, which spends most of its time on names; a shared one comes once for each."""
    return [param for each in _modules(module) for param in each._parameters.values() if param is not None]


@lru_cache(maxsize=1024)
def _kind_of(kind: type) -> type | None:
    """Which of the kinds that a snapshot looks into a type is one of; None if a snapshot holds it as it is."""
    return next((each for each in KINDS if issubclass(kind, each)), None)


def _modules(module: nn.Module) -> Collection[nn.Module]:
    """As ``module.modules()``, which spends most of its time on names."""
    found: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in found:
            found[id(each)] = each
            waiting.extend(each._modules.values())
    return found.values()


def _changed(tensor: Tensor, value: Tensor) -> bool:
    """Whether to write the value back: on the CPU, where comparing is cheap, only if it differs.

    What nobody wrote to may not be writable; a memory-mapped file is not.
    """
    return tensor.device.type != "cpu" or tensor.layout != torch.strided or not torch.equal(tensor, value)


def _refill(container: Any, items: Any) -> None:
    """Give the same container object its former items."""
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items)


def _set_generator(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)
