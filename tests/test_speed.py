"""Limits of time in the tests: a slow machine lengthens them while it is slow, and a hang still comes to its end."""

import threading
import time

import pytest
from support import speed


def machine(monkeypatch: pytest.MonkeyPatch, *slownesses: float) -> None:
    """One that is so slow at each look, and stays as at the last."""
    left = list(slownesses)
    monkeypatch.setattr(speed, "slowness", lambda: left.pop(0) if len(left) > 1 else left[0])


def test_a_burst_lengthens_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SLICE", 0.01)
    machine(monkeypatch, *[1000.0] * 10, 1.0)
    asked: list[float] = []

    def done(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(seconds)

    assert not speed.in_time(done, 0.03)
    # Ten looks count for nothing; then at most three slices of an idle machine pass.
    assert 11 <= len(asked) <= 14


def test_what_comes_to_its_end_is_not_waited_for_any_longer() -> None:
    asked: list[float] = []
    assert speed.in_time(lambda seconds: asked.append(seconds) or len(asked) == 3, 600)
    assert asked == [speed.SLICE] * 3


def test_a_thread_has_ended_or_not() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    assert not speed.ended(thread, 0.001)
    go.set()
    assert speed.ended(thread, 600)


def test_seconds_of_a_slow_machine_count_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SLICE", 0.005)
    machine(monkeypatch, 50.0)
    began = time.monotonic()
    with speed.idle_seconds() as passed:
        while passed() == 0:
            time.sleep(0.005)
    assert passed() <= (time.monotonic() - began) / 50


def test_seconds_of_an_idle_machine_count_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a context that ends before the first look at the machine."""
    machine(monkeypatch, 1.0)
    with speed.idle_seconds() as passed:
        began = time.monotonic()
        time.sleep(0.01)
        least = time.monotonic() - began
    assert passed() >= least


def test_a_machine_is_never_faster_than_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_piece_of_work", lambda: speed.IDLE / 10)
    monkeypatch.setattr(speed, "_running", lambda: 0)
    monkeypatch.setattr(speed.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert speed.slowness() == 1
    monkeypatch.setattr(speed, "_running", lambda: 30)
    monkeypatch.setattr(speed.os, "cpu_count", lambda: 2)
    assert speed.slowness() == 15
