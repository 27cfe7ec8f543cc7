"""The global random state of torch, Python and numpy: read, and put back."""

import ctypes
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch


def random_state(device: torch.device | None = None) -> list[Callable[[], None]]:
    """The state of all global generators at this moment.

    Args:
        device: the accelerator whose generator is one of them, if any. Its state is read and written without waiting
            for it.

    Returns:
        To be called to put it back.
    """
    undo: list[Callable[[], None]] = [
        partial(torch.set_rng_state, torch.get_rng_state()),
        partial(random.setstate, random.getstate()),
    ]
    if "numpy.random" in sys.modules:
        undo.append(partial(_write, _read()))
    if device is not None and device.type not in ("cpu", "meta"):
        backend = torch.get_device_module(device)
        undo.append(partial(backend.set_rng_state, backend.get_rng_state(device), device))
    return undo


class _Numpy(NamedTuple):
    """A state of numpy's global generator; ``memory`` is what it looks like inside, where that tells everything.

    Numpy reads and writes a state number by number, which takes as long as a small network's forward. Whether anybody
    has drawn from it is seen at once in its memory.
    """

    state: dict[str, Any]
    memory: bytes | None


_latest: _Numpy | None = None


def _read() -> _Numpy:
    global _latest
    memory = _memory()
    if _latest is None or _latest.memory is None or _latest.memory != memory:
        state: Any = np.random.get_state(legacy=False)
        # A normal number that waits for its turn is kept elsewhere.
        whole = memory is not None and not state["has_gauss"] and memory.startswith(state["state"]["key"].tobytes())
        _latest = _Numpy(state, memory if whole else None)
    return _latest


def _write(to: _Numpy) -> None:
    if to.memory is None or to.memory != _memory():
        np.random.set_state(to.state)


def _memory() -> bytes | None:
    """The 624 numbers of a Mersenne twister and its place among them; None for a generator of another kind."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, 625 * 4)
