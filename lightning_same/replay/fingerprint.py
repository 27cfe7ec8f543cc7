"""What the state of a module looks like, in words that can be compared: for finding what a replay does not put back."""

import hashlib
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_same.gradients.sharding import local
from lightning_same.replay.batch import ATOMS
from lightning_same.replay.inventory import OF_METRIC, UNHELD
from lightning_same.replay.modules import modules_of
from lightning_same.trainer.distributed import reshard

DEPTH = 6
"""How many objects inside objects are looked into."""

ITEMS = 256
"""Of a longer list or dict, so many items at its beginning and its end are looked at."""

LARGE = 1 << 26
"""Bytes. Larger tensors stay on their device, where integers are summed; to hash a frozen language model on the host
would take minutes."""

SUMMED = 1 << 22
"""Elements that are summed at once."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of an element."""

SKIPPED = (nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)


def fingerprint(module: nn.Module) -> dict[str, str]:
    """A short text for each piece of state that can be reached from a module, by its path.

    The user's own objects are looked into by their attributes, which a `Snapshot` does not hold: an environment, a
    replay buffer, a generator in a helper. What is in C code, in a file or in a global variable is not seen. It takes
    about as long as copying the module, so it is for a single step.

    Args:
        module: the module.

    Returns:
        Texts by paths such as ``env.steps`` or ``layers.1.running_mean``. Trained parameters are left out; those that
        require no gradient, such as those of a teacher, are not.
    """
    reshard(modules_of(module))
    return dict(_Walk().module(module))


class _Walk:
    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # Or else an id might be given again.

    def module(self, module: nn.Module) -> Iterator[tuple[str, str]]:
        for name, inner in module.named_modules():
            path = f"{name}." if name else ""
            for buffer_name, buffer in inner.named_buffers(recurse=False):
                yield f"{path}{buffer_name}", _digest(buffer)
            for param_name, param in inner.named_parameters(recurse=False):
                if not param.requires_grad:
                    yield f"{path}{param_name}", _digest(param)
            unheld = UNHELD | OF_METRIC if isinstance(inner, torchmetrics.Metric) else UNHELD
            for attribute, value in vars(inner).items():
                if attribute not in unheld and attribute not in ("_route", "sam", "two_pass"):
                    yield from self.value(f"{path}{attribute}", value, 0)

    def value(self, path: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
        if type(value) in ATOMS:
            yield path, repr(value)
        elif isinstance(value, SKIPPED) or id(value) in self._seen or depth > DEPTH:
            return  # A module inside an object has a place of its own, or is somebody else's.
        elif (text := _text(value)) is not None:
            yield path, text
        else:
            self._seen.add(id(value))
            self._alive.append(value)
            for name, item in _items(value):
                yield from self.value(f"{path}{name}", item, depth + 1)


def _text(value: Any) -> str | None:
    """The text of what is not looked into further; None for what is."""
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {_hash(value.tobytes())}"
    if isinstance(value, torch.Generator):
        return f"generator {_digest(value.get_state())}"
    if isinstance(value, random.Random):
        return f"generator {_hash(repr(value.getstate()).encode())}"
    if isinstance(value, np.random.Generator):
        return f"generator {_hash(repr(value.bit_generator.state).encode())}"
    if isinstance(value, np.random.RandomState):
        return f"generator {_hash(repr(value.get_state(legacy=False)).encode())}"
    return None


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """What is inside a container or an object, with the end of its path."""
    if isinstance(value, Mapping):
        yield " (length)", len(value)
        keys = list(value)
        for key in keys if len(keys) <= 2 * ITEMS else keys[:ITEMS] + keys[-ITEMS:]:
            yield f"[{key!r}]", value[key]
    elif isinstance(value, list | tuple | deque):
        yield " (length)", len(value)
        indices = range(len(value))
        for index in indices if len(value) <= 2 * ITEMS else [*indices[:ITEMS], *indices[-ITEMS:]]:
            yield f"[{index}]", value[index]
    elif isinstance(value, set | frozenset):
        yield " (length)", len(value)
    elif type(value).__module__.partition(".")[0] not in ("torch", "lightning"):
        slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
        attributes = {name: getattr(value, name) for name in slots if isinstance(name, str) and hasattr(value, name)}
        for name, item in {**attributes, **getattr(value, "__dict__", {})}.items():
            yield f".{name}", item


@torch.no_grad()
def _digest(tensor: Tensor) -> str:
    tensor = local(tensor)
    if tensor.is_meta or nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_nested:
        return f"tensor {type(tensor).__name__}"
    if tensor.nbytes > LARGE and tensor.is_contiguous() and tensor.element_size() in INTEGERS:
        integers = tensor.view(-1).view(INTEGERS[tensor.element_size()])
        sums = torch.stack([part.sum(dtype=torch.int64) for part in torch.split(integers, SUMMED)])
        return f"tensor {tuple(tensor.shape)} {_hash(sums.cpu().numpy().tobytes())}"
    # Of a copy: what numpy has seen cannot be resized any more.
    values = tensor.detach().clone(memory_format=torch.contiguous_format).cpu().reshape(-1)
    return f"tensor {tuple(tensor.shape)} {_hash(values.view(torch.uint8).numpy().tobytes() if len(values) else b'')}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
