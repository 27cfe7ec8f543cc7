"""The global random state of torch, Python and numpy: read, and put back."""

import abc
import ctypes
import random
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from typing_extensions import override


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
        partial(PYTHON.write, PYTHON.read()),
    ]
    if "numpy.random" in sys.modules:
        undo.append(partial(NUMPY.write, NUMPY.read()))
    if device is not None and device.type not in ("cpu", "meta"):
        backend = torch.get_device_module(device)
        undo.append(partial(backend.set_rng_state, backend.get_rng_state(device), device))
    return undo


class State(NamedTuple):
    """A state of a generator; ``memory`` is what it looks like inside, where that tells everything."""

    state: Any
    memory: bytes | None


class Twister(abc.ABC):
    """A global Mersenne twister.

    Its 624 numbers are read and written one by one, which takes as long as a small network's forward. Whether anybody
    has drawn from it since is seen at once in its memory: its numbers, and its place among them.
    """

    def __init__(self) -> None:
        self._latest = State(None, None)

    def read(self) -> State:
        """The state at this moment."""
        memory = self._memory()
        if memory is None or self._latest.memory != memory:
            state, tells = self._read()
            # Trusted only if what the memory holds is what was read.
            self._latest = State(state, memory if memory is not None and memory == tells else None)
        return self._latest

    def write(self, to: State) -> None:
        """Put a state back."""
        if to.memory is None or to.memory != self._memory():
            self._write(to.state)

    @abc.abstractmethod
    def _memory(self) -> bytes | None:
        """The generator's memory; None if it is not known where that is, or does not tell everything."""

    @abc.abstractmethod
    def _read(self) -> tuple[Any, bytes | None]:
        """The state, and what the memory has to be for it; None if that does not tell everything."""

    @abc.abstractmethod
    def _write(self, state: Any) -> None:
        """Put back what `_read` has read."""


class Python(Twister):
    """The generator behind the functions of `random`."""

    def __init__(self) -> None:
        super().__init__()
        self._generator: random.Random = random._inst
        self._address: int | None = None
        if sys.implementation.name == "cpython":
            # Where in the object it is: found by what it holds, for that is nowhere promised.
            size = type(self._generator).__basicsize__
            place = ctypes.string_at(id(self._generator), size).find(_packed(random.getstate()))
            self._address = id(self._generator) + place if place >= 0 else None

    @override
    def _memory(self) -> bytes | None:
        if self._address is None or self._generator.gauss_next is not None:  # type: ignore[attr-defined]
            return None
        return ctypes.string_at(self._address, 625 * 4)

    @override
    def _read(self) -> tuple[Any, bytes | None]:
        state = random.getstate()
        return state, _packed(state)

    @override
    def _write(self, state: Any) -> None:
        random.setstate(state)


class Numpy(Twister):
    """The generator behind the functions of `numpy.random`."""

    def __init__(self) -> None:
        super().__init__()
        self._generator: Any = None
        self._address: int | None = None
        place = _place_of_waiting()
        # Held by the functions as well, so that the address stays its own.
        owner: Any = np.random.rand
        self._waiting = None if place is None else ctypes.c_int.from_address(id(owner.__self__) + place)

    @override
    def _memory(self) -> bytes | None:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._generator:
            self._generator = generator
            self._address = generator.ctypes.state_address if type(generator) is np.random.MT19937 else None
        if self._address is None or self._waiting is None or self._waiting.value:
            return None
        return ctypes.string_at(self._address, 625 * 4)

    @override
    def _read(self) -> tuple[Any, bytes | None]:
        state: Any = np.random.get_state(legacy=False)
        if self._address is None:
            return state, None
        return state, state["state"]["key"].tobytes() + struct.pack("=i", state["state"]["pos"])

    @override
    def _write(self, state: Any) -> None:
        np.random.set_state(state)


def _place_of_waiting() -> int | None:
    """Where numpy's global object notes that a normal number waits for its turn, which is not in the generator.

    Found on another object of the type, by what it holds; None if it is not found.
    """
    if sys.implementation.name != "cpython":
        return None
    generator = np.random.RandomState(0)
    state: Any = generator.get_state()
    number = 0.123456789
    found = set()
    for waiting in (1, 0):
        generator.set_state((*state[:3], waiting, number))
        memory = ctypes.string_at(id(generator), type(generator).__basicsize__)
        at = memory.find(struct.pack("=d", number)) - 8
        if at < 0 or struct.unpack_from("=i", memory, at)[0] != waiting:
            return None
        found.add(at)
    return found.pop() if len(found) == 1 else None


def _packed(state: Any) -> bytes:
    """A state of `random` as it is in memory: the place first."""
    *numbers, place = state[1]
    return struct.pack("=i624I", place, *numbers)


PYTHON = Python()
NUMPY = Numpy()
