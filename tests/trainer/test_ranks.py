"""The helper that runs functions on several processes: what goes wrong in one call is not the next one's answer."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.ranks import Ranks

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def one() -> Iterator[Ranks]:
    group = Ranks(1)
    yield group
    group.stop()


def answer(value: Any) -> Any:
    return value


def take_long(value: Any) -> Any:
    time.sleep(600)
    return value


def fail() -> None:
    raise ValueError("on this rank")


def die() -> None:
    os._exit(3)


class Interrupted(Exception):
    """As pytest-timeout raises one in the test."""


def test_an_interrupted_call_poisons_no_later_one(one: Ranks) -> None:
    """Also if it was interrupted between the question and the answer."""

    def interrupt(*_: Any) -> None:
        raise Interrupted

    assert one.run(answer, 1) == [1]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupted):
            one.run(take_long, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert one.run(answer, 3) == [3]


def test_a_call_that_takes_too_long_or_fails_poisons_no_later_one(one: Ranks) -> None:
    with pytest.raises(RuntimeError, match=r"rank 0: .*no answer in"):
        one.run(take_long, 1, patience=0.001)
    assert one.run(answer, 2) == [2]
    with pytest.raises(RuntimeError, match=r"(?s)rank 0: .*ValueError: on this rank"):
        one.run(fail)
    with pytest.raises(RuntimeError, match="rank 0: EOFError"):
        one.run(die)
    assert one.run(answer, 3) == [3]
