"""Signals ask a study to stop; who had them before has them again after it."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_same.experiments.study.interrupts import Interrupts
from lightning_same.experiments.study.writing import uninterrupted

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@pytest.fixture
def before() -> Iterator[list[int]]:
    """The signals that come to the handler from before."""
    came: list[int] = []
    kept = {name: signal.signal(getattr(signal, name), lambda number, frame: came.append(number)) for name in NAMES}
    yield came
    for name, handler in kept.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_signal_asks_to_stop(name: str, before: list[int]) -> None:
    number = getattr(signal, name)
    with Interrupts(lambda: pytest.fail("it is not to end")) as interrupts:
        assert not interrupts.stopped
        signal.raise_signal(number)
        assert interrupts.stopped
        assert before == []
    signal.raise_signal(number)
    assert before == [number]


@pytest.mark.usefixtures("before")
def test_the_second_signal_ends_the_process_but_not_while_files_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    monkeypatch.setattr("os._exit", ended.append)
    with Interrupts(lambda: ended.append("end")):
        signal.raise_signal(signal.SIGINT)
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
        assert ended == []
        signal.raise_signal(signal.SIGTERM)
        assert ended == ["end", 130]
