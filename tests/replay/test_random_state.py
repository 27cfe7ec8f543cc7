"""The global random state comes back, and is read again only where it has to be."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode

from lightning_same.replay.random_state import NUMPY, PYTHON, Numpy, Python, Twister, random_state
from lightning_same.replay.snapshot import Snapshot


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_accelerators_random_state() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    start = Snapshot(nn.Identity(), device=device)
    first = torch.rand(3, device=device)
    start.restore()
    assert torch.equal(first, torch.rand(3, device=device))


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_random_state_of_any_kind_of_accelerator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the device's module: its state is the number of draws."""
    drawn = {0: 3, 1: 40}
    device = torch.device(kind, 1)

    def read(of: torch.device) -> torch.Tensor:
        return torch.tensor(drawn[of.index])

    def write(state: torch.Tensor, of: torch.device) -> None:
        drawn[of.index] = int(state)

    monkeypatch.setattr(getattr(torch, kind), "get_rng_state", read)
    monkeypatch.setattr(getattr(torch, kind), "set_rng_state", write)
    put_back = random_state(device)
    drawn[0] += 1
    drawn[1] += 5
    for function in put_back:
        function()
    assert drawn == {0: 4, 1: 40}


@pytest.mark.parametrize("waiting", [False, True], ids=["", "with a normal number waiting"])
def test_numpys_state_comes_back(waiting: bool) -> None:
    """Also where nobody has drawn since the state was read last, and where its memory does not tell all."""
    before = np.random.get_state()
    try:
        np.random.seed(3)
        if waiting:
            np.random.randn()
        start = Snapshot(nn.Identity())
        only = np.random.randn()  # Where one waits, this leaves the generator's memory as it is.
        start.restore()
        assert np.random.randn() == only
        start.restore()
        for draw in (np.random.randn, np.random.rand, lambda: np.random.seed(3)):
            start = Snapshot(nn.Identity())
            first = [draw(), np.random.randn(), np.random.rand()]
            start.restore()
            assert np.random.get_state()[3] == waiting
            assert [draw(), np.random.randn(), np.random.rand()] == first
            start.restore()
            start.restore()
            assert [draw(), np.random.randn(), np.random.rand()] == first
            start.restore()
    finally:
        np.random.set_state(before)


@pytest.mark.parametrize("waiting", [False, True], ids=["", "with a normal number waiting"])
def test_pythons_state_comes_back(waiting: bool) -> None:
    before = random.getstate()
    try:
        random.seed(3)
        if waiting:
            random.gauss(0, 1)
        start = Snapshot(nn.Identity())
        only = random.gauss(0, 1)
        start.restore()
        assert random.gauss(0, 1) == only
        start.restore()
        for draw in (random.random, lambda: random.gauss(0, 1), lambda: random.seed(3)):
            start = Snapshot(nn.Identity())
            state = random.getstate()
            first = [draw(), random.gauss(0, 1), random.random()]
            start.restore()
            assert random.getstate() == state
            assert (state[2] is not None) == waiting
            assert [draw(), random.gauss(0, 1), random.random()] == first
            start.restore()
            start.restore()
            assert [draw(), random.gauss(0, 1), random.random()] == first
            start.restore()
    finally:
        random.setstate(before)


@pytest.mark.parametrize(
    ("twister", "draw"), [(NUMPY, np.random.rand), (PYTHON, random.random)], ids=["numpy", "Python"]
)
def test_a_state_is_read_again_only_if_somebody_has_drawn(twister: Twister, draw: Callable[[], object]) -> None:
    np.random.seed(3)
    random.seed(3)
    first = twister.read()
    assert first.memory is not None
    assert twister.read() is first
    draw()
    second = twister.read()
    assert second is not first
    assert second.memory != first.memory
    twister.write(first)
    assert twister.read().memory == first.memory


@given(st.lists(st.sampled_from(["random", "gauss", "seed", "shuffle", "bits"]), max_size=8), st.integers(0, 3))
def test_pythons_memory_tells_every_draw(calls: list[str], warm: int) -> None:
    """Whatever is drawn between two reads, the state that is read is the one that `random` reports."""
    before = random.getstate()
    do: dict[str, Callable[[], object]] = {
        "random": random.random,
        "gauss": lambda: random.gauss(0, 1),
        "seed": lambda: random.seed(3),
        "shuffle": lambda: random.shuffle([*range(700)]),
        "bits": lambda: random.getrandbits(64),
    }
    try:
        for _ in range(warm):
            PYTHON.read()
        start = PYTHON.read()
        assert start.state == random.getstate()
        for call in calls:
            do[call]()
            assert PYTHON.read().state == random.getstate()
        PYTHON.write(start)
        assert random.getstate() == start.state
    finally:
        random.setstate(before)


def test_a_normal_number_of_numpys_that_waits_is_seen() -> None:
    """To take it changes nothing in the generator."""
    before = np.random.get_state()
    try:
        np.random.seed(3)
        nobody = NUMPY.read()
        assert nobody.memory is not None
        np.random.randn(2)
        after_two = NUMPY.read()
        NUMPY.write(nobody)
        only = np.random.randn()
        assert NUMPY.read().state["has_gauss"] == 1
        NUMPY.write(after_two)
        assert np.random.get_state()[3] == 0
        NUMPY.write(nobody)
        assert np.random.randn() == only
        waiting = NUMPY.read()
        other = np.random.randn()
        NUMPY.read()
        NUMPY.write(waiting)
        assert NUMPY.read().state["has_gauss"] == 1
        assert np.random.randn() == other
    finally:
        np.random.set_state(before)


@pytest.mark.parametrize("kind", [Numpy, Python])
def test_a_memory_that_is_not_what_it_should_be_is_not_trusted(
    kind: type[Twister], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = kind()
    monkeypatch.setattr(kind, "_memory", lambda self: b"something else")
    first = generator.read()
    assert first.memory is None
    np.random.rand()
    random.random()
    assert str(generator.read().state) != str(first.state)


def test_the_state_of_another_kind_of_numpy_generator_comes_back() -> None:
    twister = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        start = Snapshot(nn.Identity())
        first = np.random.randn(3).tolist()
        start.restore()
        assert np.random.randn(3).tolist() == first
    finally:
        np.random.set_bit_generator(twister)


class PretendedCuda:
    """Generators that count what they have given, and cuDNN's buffer of dropout, filled anew when one was set."""

    def __init__(self) -> None:
        self.given = {"cuda:0": 0, "cuda:1": 0}
        self.was_set = 0
        self._refill = True
        self._buffer = (0, 0)

    def is_available(self) -> bool:
        return False

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.given[str(device)])

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.given[str(device)] = int(state)
        self.was_set += 1
        self._refill = True

    def draw(self, device: str) -> int:
        self.given[device] += 1
        return self.given[device]

    def mask(self) -> tuple[int, int]:
        """What a recurrent layer drops."""
        if self._refill:
            self._buffer, self._refill = (self.draw("cuda:0"), 0), False
        self._buffer = (self._buffer[0], self._buffer[1] + 1)
        return self._buffer


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    pretended = PretendedCuda()
    monkeypatch.setattr(torch, "get_device_module", lambda device: pretended)
    return pretended


def test_cudnn_draws_the_dropout_of_pass_one_again(cuda: PretendedCuda) -> None:
    module = nn.Sequential(nn.LSTM(3, 3, num_layers=2, dropout=0.3))
    for _ in range(2):  # Two steps that take one pass: the buffer goes on.
        cuda.mask()
    start = Snapshot(module, device=torch.device("cuda:0"))
    first = [cuda.mask(), cuda.draw("cuda:0"), cuda.mask()]
    for _ in range(2):
        start.restore()
        assert [cuda.mask(), cuda.draw("cuda:0"), cuda.mask()] == first


@pytest.mark.parametrize(
    "module", [nn.Linear(1, 1), nn.LSTM(3, 3, 2), nn.Dropout(0.3)], ids=["linear", "lstm", "dropout"]
)
def test_without_such_dropout_nothing_is_set(cuda: PretendedCuda, module: nn.Module) -> None:
    Snapshot(module, device=torch.device("cuda:0"))
    assert cuda.was_set == 0


def test_generators_of_all_devices_with_parameters_come_back(cuda: PretendedCuda) -> None:
    with FakeTensorMode():
        params = [torch.empty(2, device=device) for device in ("cuda:1", "cpu", "cuda:0", "cuda:1")]
    start = Snapshot(nn.Identity(), params, torch.device("cuda:0"))
    first = [cuda.draw("cuda:0"), cuda.draw("cuda:1")]
    start.restore()
    assert cuda.was_set == 2
    assert [cuda.draw("cuda:0"), cuda.draw("cuda:1")] == first
