"""Everything that can be reached from an object, as nested dicts and lists that compare by value."""

import random
import types
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

OWN = frozenset({"sam", "two_pass", "_route", "_trainer", "_fabric", "_log_hyperparams", "_source_dict"})
"""Attributes of a module that are the mixin's or the Trainer's; and a cache that torch_geometric fills once."""

OPAQUE = (pl.Trainer, types.ModuleType, weakref.ReferenceType, RemovableHandle)


def state_of(value: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """The value, with all objects in it taken apart, those of unknown classes too.

    Floats become their ``repr``, so that NaN equals NaN. An object that comes again is named by when it came first, so
    that what is shared on one side must be shared on the other.
    """
    seen = {} if seen is None else seen
    if value is None or isinstance(value, bool | int | str | bytes | torch.dtype | torch.device):
        return value
    if isinstance(value, float | complex | np.generic):
        return repr(value)
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, OPAQUE):
        return type(value).__name__
    if id(value) in seen:
        return f"seen as number {seen[id(value)][0]}"
    seen[id(value)] = (len(seen), value)  # Kept alive, or its id might come again.
    return _taken_apart(value, seen)


def _taken_apart(value: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    if isinstance(value, Tensor):
        plain = value.detach()
        plain = plain.to_dense() if plain.layout != torch.strided else plain
        return [plain.clone(), value.requires_grad]
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return list(value.getstate())
    if isinstance(value, np.random.Generator):
        return state_of(value.bit_generator.state, seen)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return [state_of(item, seen) for item in value.tolist()]
        return [str(value.dtype), value.shape, value.tobytes()]
    if isinstance(value, Mapping):
        return [[state_of(key, seen), state_of(item, seen)] for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(repr(state_of(item, seen)) for item in value)
    if isinstance(value, list | tuple | deque):
        return [state_of(item, seen) for item in value]
    if type(value).__module__.startswith("pandas"):
        return value.to_json() if hasattr(value, "to_json") else repr(value)
    return {"class": type(value).__name__, **attributes_of(value, seen)}


def attributes_of(value: Any, seen: dict[int, tuple[int, Any]]) -> dict[str, Any]:
    """By name, from the object's dictionary or its slots."""
    names = dict.fromkeys(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names |= dict.fromkeys((slots,) if isinstance(slots, str) else slots)
    kept = [name for name in names if name not in OWN and not name.startswith("__") and hasattr(value, name)]
    return {name: state_of(_without_numbers(name, getattr(value, name)), seen) for name in kept}


def _without_numbers(name: str, value: Any) -> Any:
    """Hooks of modules are numbered through, over all modules of a process."""
    return list(value.values()) if "_hooks" in name and isinstance(value, dict) else value
