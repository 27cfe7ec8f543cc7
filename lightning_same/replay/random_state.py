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


def random_state(*devices: torch.device | None) -> list[Callable[[], None]]:
    """The state of all global generators at this moment.

    Args:
        *devices: whose generators belong to them, each once; of a CPU and of None nothing more. The state of an
            accelerator's is read and written without waiting for the device.

    Returns:
        Functions that put it back.

    Example:
        >>> put_back = random_state()
        >>> first = random.random(), torch.rand(()).item()
        >>> for function in put_back:
        ...     function()
        >>> first == (random.random(), torch.rand(()).item())
        True
    """
    put_back: list[Callable[[], None]] = [
        partial(torch.set_rng_state, torch.get_rng_state()),
        partial(PYTHON.write, PYTHON.read()),
    ]
    if "numpy.random" in sys.modules:
        put_back.append(partial(NUMPY.write, NUMPY.read()))
    for device in devices:
        if device is not None and device.type not in ("cpu", "meta"):
            backend = torch.get_device_module(device)
            put_back.append(partial(backend.set_rng_state, backend.get_rng_state(device), device))
    return put_back


MEMORY = ctypes.c_char * (625 * 4)
"""The 624 numbers of a Mersenne twister, and its position among them."""


class TwisterState(NamedTuple):
    """A state of a Mersenne twister.

    Attributes:
        state: as the generator reports it.
        memory: the bytes that the generator holds in this state; None where they do not determine it.
    """

    state: Any
    memory: bytes | None


class Twister(abc.ABC):
    """A global Mersenne twister.

    Its 624 numbers are reported and taken back one by one: 8 microseconds for Python's generator and 30 for numpy's, as
    long as a small network's forward, and what they leave in the cache is gone. A step asks four times. The generator's
    memory, the numbers and the position among them, tells in 1 microsecond whether anybody has drawn since.
    """

    def __init__(self) -> None:
        self._latest = TwisterState(None, None)

    def read(self) -> TwisterState:
        """The state at this moment."""
        memory = self._memory()
        if memory is None or self._latest.memory != memory:
            state = self._reported()
            # Trusted only if the memory holds what the generator has reported.
            trusted = memory is not None and memory == self._packed(state)
            self._latest = TwisterState(state, memory if trusted else None)
        return self._latest

    def write(self, to: TwisterState) -> None:
        """Put a state back."""
        if to.memory is None or to.memory != self._memory():
            self._set(to.state)

    @abc.abstractmethod
    def _memory(self) -> bytes | None:
        """The generator's memory; None if its address is not known, or if it does not determine the state."""

    @abc.abstractmethod
    def _reported(self) -> Any:
        """The state as the generator reports it."""

    @abc.abstractmethod
    def _packed(self, state: Any) -> bytes:
        """A reported state as it lies in memory."""

    @abc.abstractmethod
    def _set(self, state: Any) -> None:
        """Give the generator a state that it has reported."""


class Python(Twister):
    """The generator behind the functions of `random`."""

    def __init__(self) -> None:
        super().__init__()
        # The functions hold the object too, so that its address stays valid.
        self._generator: Any = random.random.__self__  # type: ignore[attr-defined]
        self._held: ctypes.Array[ctypes.c_char] | None = None
        if sys.implementation.name == "cpython":
            # No promise says where the numbers are in the object, so they are searched there.
            held = ctypes.string_at(id(self._generator), type(self._generator).__basicsize__)
            offset = held.find(self._packed(random.getstate()))
            self._held = None if offset < 0 else MEMORY.from_address(id(self._generator) + offset)

    @override
    def _memory(self) -> bytes | None:
        # The second of two normal numbers, which the next call gets, is not among the numbers.
        if self._held is None or self._generator.gauss_next is not None:
            return None
        return self._held.raw

    @override
    def _reported(self) -> Any:
        return random.getstate()

    @override
    def _packed(self, state: Any) -> bytes:
        *numbers, position = state[1]
        return struct.pack("=i624I", position, *numbers)

    @override
    def _set(self, state: Any) -> None:
        random.setstate(state)


class Numpy(Twister):
    """The generator behind the functions of `numpy.random`."""

    def __init__(self) -> None:
        super().__init__()
        self._generator: Any = None
        self._held: ctypes.Array[ctypes.c_char] | None = None
        offset = _offset_of_has_gauss()
        # `np.random.rand` holds the object too, so that its address stays valid.
        owner: Any = np.random.rand
        self._has_gauss = None if offset is None else ctypes.c_int.from_address(id(owner.__self__) + offset)

    @override
    def _memory(self) -> bytes | None:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._generator:
            self._generator = generator
            is_twister = type(generator) is np.random.MT19937
            self._held = MEMORY.from_address(generator.ctypes.state_address) if is_twister else None
        if self._held is None or self._has_gauss is None or self._has_gauss.value:
            return None
        return self._held.raw

    @override
    def _reported(self) -> Any:
        return np.random.get_state(legacy=False)

    @override
    def _packed(self, state: Any) -> bytes:
        packed: bytes = state["state"]["key"].tobytes() + struct.pack("=i", state["state"]["pos"])
        return packed

    @override
    def _set(self, state: Any) -> None:
        np.random.set_state(state)


def _offset_of_has_gauss() -> int | None:
    """Where a `numpy.random.RandomState` notes that it keeps the second of two normal numbers for the next call.

    That number is not in the generator. The offset is searched in an object whose content is known; None if it is not
    there.
    """
    if sys.implementation.name != "cpython":
        return None
    generator = np.random.RandomState(0)
    state: Any = generator.get_state()
    number = 0.123456789
    offsets = set()
    for has_gauss in (1, 0):
        generator.set_state((*state[:3], has_gauss, number))
        memory = ctypes.string_at(id(generator), type(generator).__basicsize__)
        offset = memory.find(struct.pack("=d", number)) - 8
        if offset < 0 or struct.unpack_from("=i", memory, offset)[0] != has_gauss:
            return None
        offsets.add(offset)
    return offsets.pop() if len(offsets) == 1 else None


PYTHON = Python()
NUMPY = Numpy()
