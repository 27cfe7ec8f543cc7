"""The state that a forward may change: held at one moment, and put back."""

import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property, lru_cache, partial, singledispatch
from typing import Any, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_same.replay.batch import ATOMS, overlaps, storage_of
from lightning_same.replay.frozen import FrozenCopies
from lightning_same.replay.random_state import random_state
from lightning_same.replay.tensor_copies import TensorCopies
from lightning_same.trainer.distributed import reshard

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


Attributes: TypeAlias = tuple[dict[str, Any], frozenset[str], dict[str, Any], int]
"""Of one module: its own dictionary, names in it that are not held, the others with their values, how many in all."""


class Snapshot:
    """The state of a module and of the random number generators at one moment.

    Held by value: buffers, persistent or not; tensors and numpy arrays in attributes of the module and its submodules;
    lists, dicts, sets and deques there, nested ones too; torchmetrics states; parameters that are not trained, such as
    those of a momentum encoder; generators held as attributes; which submodules, parameters and buffers there are, and
    which parameters require a gradient; the global random state of torch (CPU, and the device given), Python and numpy.
    Other attributes (numbers, strings, the user's own objects) are held by reference: a counter on the module is put
    back, one inside an object of the user's is not. For the batch, see `copy_of`.

    Parameters that are not trained are left out where they take more than four times the memory of ``unheld``, a frozen
    backbone or the teacher of a small adapter. A training step that writes to them does so once more at each replay;
    `fingerprint` sees it. Buffers have no such limit.

    Parameters that FSDP2 has gathered are sharded again, when the state is taken and when it is put back.

    Recurrent layers with dropout draw their masks on CUDA from a buffer of cuDNN's own. It is filled anew from the
    generator, for the masks to be the same in each replay; so they are others than without a snapshot.

    Args:
        module: whose state to take.
        unheld: parameters that somebody else takes care of; they and what shares their memory are left alone.
        device: the accelerator whose random state belongs to it, if any, as those of ``unheld``'s devices do.
        modes: whether the modes of the submodules, "train" or "eval", are part of it.
        frozen: copies of parameters that are not trained, which are taken from there if they are still right.
    """

    def __init__(
        self,
        module: nn.Module,
        unheld: Sequence[Tensor] = (),
        device: torch.device | None = None,
        *,
        modes: bool = True,
        frozen: FrozenCopies | None = None,
    ) -> None:
        devices = dict.fromkeys([device, *[param.device for param in unheld]])
        self.undo = random_state(*devices)
        self._unheld_names = UNHELD if modes else UNHELD | {"training"}
        self._unheld = unheld
        self._attributes: list[Attributes] = []
        self._registered: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._empty: list[dict[str, Any]] = []
        self._seen: set[int] = set()
        self._to_copy: dict[int, Tensor] = {}
        self._modules = modules_of(module)
        modules = self._modules
        reshard(modules)
        if any(map(_is_cuda, devices)) and any(map(_draws_from_a_buffer, modules)):
            # cuDNN fills its buffer from the generator when that is set, as each replay does: pass one has to, too.
            for undo in self.undo:
                undo()
        self.hold_modules(modules)
        params = parameters_of(modules)
        self._requires_grad = [(param, param.requires_grad) for param in params]
        self._copies = [TensorCopies(self._to_copy.values())]
        held = self._frozen_to_hold(params)
        if held:
            self._copies.append((frozen or FrozenCopies()).of(held))
        del self._seen, self._to_copy

    def restore(self) -> None:
        """Put everything back. May be called many times."""
        for undo in self.undo:
            undo()
        reshard(self._modules)
        for now, unheld, held, size in self._attributes:
            now.update(held)
            if len(now) > size:
                for name in now.keys() - unheld - held.keys():
                    del now[name]
        for container, items in self._registered:
            container.clear()
            container.update(items)
        if any(self._empty):
            for container in self._empty:
                container.clear()
        for param, requires_grad in self._requires_grad:
            if param.requires_grad != requires_grad:
                param.requires_grad_(requires_grad)
        for copies in self._copies:
            copies.restore()

    def release(self, params: Sequence[Tensor]) -> None:
        """Put the values of these parameters back for the last time: from now on somebody else takes care of them."""
        for copies in self._copies:
            copies.release(params)

    def hold(self, value: Any, deep: bool = True) -> None:
        """Hold what can change inside ``value`` while it stays the same object."""
        if type(value) not in ATOMS and id(value) not in self._seen:
            kind: Any = type(value)
            how = _how_to_hold(kind)
            if how is not None:
                how(value, self, deep)

    def hold_modules(self, modules: Iterable[nn.Module]) -> None:
        """Hold modules without their submodules."""
        seen, registered, empty = self._seen, self._registered, self._empty
        for module in modules:
            if id(module) in seen:
                continue
            seen.add(id(module))
            attributes = vars(module)
            for name in REGISTERED:
                container = attributes[name]
                if container:
                    registered.append((container, container.copy()))
                else:  # As most are, which is seen sooner without a copy.
                    empty.append(container)
            for buffer in attributes["_buffers"].values():
                if buffer is not None:
                    self.hold_tensor(buffer)
            kind: Any = type(module)
            is_metric = _is_metric(kind)
            unheld = self._unheld_names | OF_METRIC if is_metric else self._unheld_names
            held = {name: value for name, value in attributes.items() if name not in unheld}
            self._attributes.append((attributes, unheld, held, len(attributes)))
            # A metric's list state grows by appending; to copy what it has gathered each time would be quadratic.
            states: Any = module._defaults if is_metric else ()
            for name, value in held.items():
                if type(value) not in ATOMS:
                    self.hold(value, deep=name not in states)

    def hold_tensor(self, tensor: Tensor) -> None:
        """Hold a tensor by value, if it is a state.

        One with a history is a result of the forward: it is replaced, never written to. One that holds an element at
        several places cannot be written to either, nor one that is not there yet.
        """
        if self._is_state(tensor):
            self._to_copy[id(tensor)] = tensor

    def _is_state(self, tensor: Tensor) -> bool:
        return (
            id(tensor) not in self._to_copy
            and not nn.parameter.is_lazy(tensor)
            and tensor.grad_fn is None
            and not tensor.is_inference()
            and not tensor.is_nested
            and storage_of(tensor) not in self._unheld_storages
            and not (tensor.layout == torch.strided and overlaps(tensor))
        )

    def hold_container(self, container: Any, items: Collection[Any], deep: bool) -> None:
        """Hold a list, dict, set or deque: its items and, if ``deep``, what can change inside them."""
        self._seen.add(id(container))
        self.undo.append(partial(refill, container, container.copy()))
        gathered = not isinstance(container, dict) and (
            len(items) > LENGTH_LIMIT
            or sum(item.nbytes for item in items if isinstance(item, Tensor)) > self._size_limit
        )
        if deep and not gathered:
            for item in items:
                self.hold(item)

    def _frozen_to_hold(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The parameters that nobody else takes care of; none if they are too large."""
        unheld = {id(param) for param in self._unheld}
        frozen = [
            param
            for param in params
            if id(param) not in unheld
            and not nn.parameter.is_lazy(param)
            and storage_of(param) not in self._unheld_storages
        ]
        if not frozen or sum(param.nbytes for param in frozen) > self._size_limit:
            return []
        # A shared one comes once for each module, and a module's attribute may hold it, too.
        return [param for param in dict.fromkeys(frozen) if self._is_state(param)]

    @cached_property
    def _unheld_storages(self) -> set[int]:
        return {storage_of(param) for param in self._unheld}

    @cached_property
    def _size_limit(self) -> int:
        return SIZE_LIMIT * sum(param.nbytes for param in self._unheld) if self._unheld else sys.maxsize


@singledispatch
def hold(value: Any, snapshot: Snapshot, deep: bool) -> None:
    """Hold what can change inside a value; by default nothing: it is held by reference."""


@hold.register
def _(value: nn.Module, snapshot: Snapshot, deep: bool) -> None:
    snapshot.hold_modules(modules_of(value))


@hold.register
def _(value: Tensor, snapshot: Snapshot, deep: bool) -> None:
    if not isinstance(value, nn.Parameter):
        snapshot.hold_tensor(value)


@hold.register
def _(value: dict, snapshot: Snapshot, deep: bool) -> None:  # type: ignore[type-arg]
    if _is_refillable(type(value)):
        snapshot.hold_container(value, value.values(), deep)


@hold.register(list)
@hold.register(deque)
@hold.register(set)
def _(value: list[Any] | deque[Any] | set[Any], snapshot: Snapshot, deep: bool) -> None:
    if _is_refillable(type(value)):
        snapshot.hold_container(value, value, deep)


@hold.register
def _(value: tuple, snapshot: Snapshot, deep: bool) -> None:  # type: ignore[type-arg]
    for item in value:
        snapshot.hold(item)


@hold.register
def _(value: np.ndarray, snapshot: Snapshot, deep: bool) -> None:
    if value.flags.writeable:
        snapshot.undo.append(partial(np.copyto, value, value.copy()))


@hold.register
def _(value: torch.Generator, snapshot: Snapshot, deep: bool) -> None:
    snapshot.undo.append(partial(_set_state, value, value.get_state()))


@hold.register
def _(value: random.Random, snapshot: Snapshot, deep: bool) -> None:
    snapshot.undo.append(partial(value.setstate, value.getstate()))


@hold.register
def _(value: np.random.Generator, snapshot: Snapshot, deep: bool) -> None:
    snapshot.undo.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))


@hold.register
def _(value: np.random.RandomState, snapshot: Snapshot, deep: bool) -> None:
    snapshot.undo.append(partial(value.set_state, value.get_state()))


@lru_cache(maxsize=1024)
def _how_to_hold(kind: type) -> Callable[[Any, Snapshot, bool], None] | None:
    """`hold` for values of this type; None where there is nothing to hold."""
    how: Any = hold.dispatch(kind)
    return None if how is hold.dispatch(object) else how


@lru_cache(maxsize=1024)
def _is_metric(kind: type) -> bool:
    return issubclass(kind, torchmetrics.Metric)


def parameters_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters of modules, without those of their submodules; a shared one comes once for each."""
    return [param for module in modules for param in module._parameters.values() if param is not None]


def modules_of(module: nn.Module) -> Collection[nn.Module]:
    """As ``module.modules()``, which spends most of its time on names."""
    modules: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        inner = waiting.pop()
        if inner is not None and id(inner) not in modules:
            modules[id(inner)] = inner
            waiting.extend(inner._modules.values())
    return modules.values()


def _draws_from_a_buffer(module: nn.Module) -> bool:
    """Whether cuDNN draws the module's dropout."""
    return isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


@lru_cache(maxsize=256)
def _is_refillable(kind: type) -> bool:
    """Whether a container takes its items back; a subclass may forbid that, as the outputs of some models do."""
    return kind.__module__ in ("builtins", "collections") or not any(
        name in vars(cls)
        for cls in kind.__mro__
        if cls.__module__ not in ("builtins", "collections", "collections.abc", "typing")
        for name in ("clear", "copy", "update", "extend", "__setitem__")
    )


def refill(container: Any, items: Any) -> None:
    """Give the same container object its former items."""
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items)


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    # Not the bound method, which torch.compile cannot see through.
    generator.set_state(state)
