"""Training, saving, failing, resuming and changing the rule or the parameters, in any sequence, against a model."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.ranks import Ranks
from support.stepwise import BATCHES, RULES, Model, Session, session_of
from support.stepwise_on_two import SessionOnTwo

NAMES = st.sampled_from(list(RULES))
NUMBERS = st.integers(0, len(BATCHES) - 1)
SAME_OR_OTHER = st.none() | NAMES
"""Of the rule with which training goes on; None for the same."""


class AnySequence(RuleBasedStateMachine):
    """One Trainer at a time."""

    processes = 1

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name, "saved.ckpt")
        self.model = Model(self.processes)
        self.saved: dict[str, Any] | None = None
        self.sam = "SAM"
        self.session: Session | SessionOnTwo

    def open(self, file: Path | None = None) -> Session | SessionOnTwo:
        return session_of(self.model.frozen, self.model.group_rho, self.sam, file)

    @initialize(sam=NAMES)
    def begin(self, sam: str) -> None:
        self.sam = sam
        self.session = self.open()

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=5))
    def train(self, numbers: list[int]) -> None:
        for number in numbers:
            self.session.send(number)
            assert self.session.error is None
            self.model.take(number, self.sam)

    @rule(sam=NAMES)
    def swap_the_rule(self, sam: str) -> None:
        self.sam = sam
        self.session.swap(sam)

    @precondition(lambda self: not self.model.inside_a_window)
    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.model.frozen = frozen
        self.session.freeze(frozen)

    @precondition(lambda self: self.model.group_rho is None and not self.model.inside_a_window)
    @rule(rho=st.sampled_from(["rule", 0.0, 0.6]))
    def add_a_group(self, rho: float | str) -> None:
        self.model.group_rho = rho
        self.session.add_group(rho)

    @rule()
    def save(self) -> None:
        self.session.save(self.file)
        self.saved = self.model.saved()

    @precondition(lambda self: self.saved is not None)
    @rule(sam=SAME_OR_OTHER)
    def stop_and_resume(self, sam: str | None) -> None:
        self.session.stop()
        assert type(self.session.error).__name__ == "StoppedError"
        self.resume(sam)

    @precondition(lambda self: self.saved is not None)
    @rule(number=NUMBERS, in_pass=st.sampled_from([1, 2]), sam=SAME_OR_OTHER)
    def fail_and_resume(self, number: int, in_pass: int, sam: str | None) -> None:
        """With the weights at w, whatever they were when it failed."""
        self.session.fail_in(in_pass)
        self.session.send(number)
        if self.session.error is None:  # No pass two was due.
            self.session.fail_in(None)
            self.model.take(number, self.sam)
            return
        assert str(self.session.error) == "in the midst of a step"
        self.agrees()
        self.session.stop()
        self.resume(sam)

    def resume(self, sam: str | None) -> None:
        assert self.saved is not None
        self.model.load(self.saved)
        self.sam = sam or self.sam
        self.session = self.open(self.file)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "session"):
            for found, value in zip(self.session.weights, self.model.weights, strict=True):
                np.testing.assert_allclose(found, value, rtol=0, atol=1e-11)

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.session.stop()
        self.folder.cleanup()


class OnOneProcess(AnySequence):
    @rule()
    def skip(self) -> None:
        """The training step returns None, which DDP does not support."""
        self.session.send(None)
        assert self.session.error is None
        self.model.take(None, self.sam)


class OnTwoProcesses(AnySequence):
    """DDP, where all processes drop a step if one of them sees NaN."""

    processes = 2
    group: Ranks

    def open(self, file: Path | None = None) -> SessionOnTwo:
        return SessionOnTwo(self.group, self.model.frozen, self.model.group_rho, self.sam, file)

    @precondition(lambda self: self.model.rule_of_next(self.sam) != "none")
    @rule(number=NUMBERS, rank=st.sampled_from([0, 1]))
    def spoil(self, number: int, rank: int) -> None:
        self.session.send(number, rank)
        assert self.session.error is None
        self.model.take(number, self.sam, spoiled=True)


def limits(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_on_one_process() -> None:
    run_state_machine_as_test(OnOneProcess, settings=limits(50, 20))


def test_on_two_processes(ranks: dict[int, Ranks]) -> None:
    machine = type("OnTheseTwo", (OnTwoProcesses,), {"group": ranks[2]})
    run_state_machine_as_test(machine, settings=limits(10, 15))


@pytest.mark.parametrize("sam", ["VaSSO", "FriendlySAM", "LookSAM"])
def test_what_a_rule_carries_is_in_the_file(sam: str) -> None:
    """One sequence that is always tried: without the file's content the weights differ after the next steps."""
    machine = OnOneProcess()
    try:
        machine.begin(sam)
        machine.train([0, 1])
        machine.save()
        machine.train([2])
        machine.stop_and_resume(None)
        machine.train([3, 4, 5, 6])
        machine.agrees()
    finally:
        machine.teardown()


@pytest.mark.parametrize("sam", ["VaSSO", "FriendlySAM", "LookSAM", "GSAM"])
def test_a_sequence_that_is_always_tried_on_two_processes(ranks: dict[int, Ranks], sam: str) -> None:
    """A group with its own radius, a step that is dropped, a file, and a rule that goes on from it."""
    machine = type("OnTheseTwo", (OnTwoProcesses,), {"group": ranks[2]})()
    try:
        machine.begin(sam)
        machine.add_a_group(0.6)
        machine.train([0, 1, 2, 3])
        machine.agrees()
        machine.spoil(4, 1)
        machine.train([5])
        machine.agrees()
        machine.freeze(True)
        machine.train([6, 7])
        machine.save()
        machine.train([0])
        machine.stop_and_resume(None)
        machine.train([1, 2, 3, 4])
        machine.agrees()
    finally:
        machine.teardown()
