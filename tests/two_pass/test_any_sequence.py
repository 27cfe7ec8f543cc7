"""Training, saving, failing, resuming and changing the rule or the parameters, in any sequence, against a model."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.stepwise import BATCHES, RULES, Model, Session, StoppedError, group_of, session_of, tensors

NAMES = st.sampled_from(list(RULES))
SAME_OR_OTHER = st.none() | NAMES
"""Of the rule with which training goes on; None for the same."""


class AnySequence(RuleBasedStateMachine):
    """One Trainer at a time, on one process."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name, "saved.ckpt")
        self.model = Model()
        self.saved: dict[str, Any] | None = None
        self.sam = "SAM"
        self.session: Session

    @initialize(sam=NAMES)
    def begin(self, sam: str) -> None:
        self.sam = sam
        self.session = session_of(self.model, sam)

    @rule(numbers=st.lists(st.integers(0, len(BATCHES) - 1), min_size=1, max_size=5))
    def train(self, numbers: list[int]) -> None:
        for number in numbers:
            self.session.send(tensors(number))
            assert self.session.error is None
            self.model.take(number, self.sam)

    @rule()
    def skip(self) -> None:
        """The training step returns None."""
        self.session.send((None,))
        assert self.session.error is None
        self.model.take(None, self.sam)

    @rule(sam=NAMES)
    def swap_the_rule(self, sam: str) -> None:
        self.sam, self.session.module.sam = sam, RULES[sam]

    @precondition(lambda self: not self.model.inside_a_window)
    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.model.frozen = frozen
        self.session.module.freeze_first(frozen)

    @precondition(lambda self: self.model.group_rho is None and not self.model.inside_a_window)
    @rule(rho=st.sampled_from(["rule", 0.0, 0.6]))
    def add_a_group(self, rho: float | str) -> None:
        self.model.group_rho = self.session.module.group_rho = rho
        self.session.module.addend.grad = None
        self.session.trainer.optimizers[0].add_param_group(group_of(self.session.module))

    @rule()
    def save(self) -> None:
        self.session.trainer.save_checkpoint(self.file)
        self.saved = self.model.saved()

    @precondition(lambda self: self.saved is not None)
    @rule(sam=SAME_OR_OTHER)
    def stop_and_resume(self, sam: str | None) -> None:
        self.session.stop()
        assert isinstance(self.session.error, StoppedError)
        self.resume(sam)

    @precondition(lambda self: self.saved is not None)
    @rule(number=st.integers(0, len(BATCHES) - 1), in_pass=st.sampled_from([1, 2]), sam=SAME_OR_OTHER)
    def fail_and_resume(self, number: int, in_pass: int, sam: str | None) -> None:
        """With the weights at w, whatever they were when it failed."""
        self.session.module.fault.in_pass = in_pass
        self.session.send(tensors(number))
        if self.session.error is None:  # No pass two was due.
            self.session.module.fault.in_pass = None
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
        self.session = session_of(self.model, self.sam, self.file)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "session"):
            module = self.session.module
            assert module.sam_pass == 0
            found = [*module.layers.parameters(), module.addend]
            for param, value in zip(found, self.model.weights, strict=True):
                np.testing.assert_allclose(param.detach().numpy(), value, rtol=0, atol=1e-11)

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.session.stop()
        self.folder.cleanup()


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(
    max_examples=50, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("sam", ["VaSSO", "FriendlySAM", "LookSAM"])
def test_what_a_rule_carries_is_in_the_file(sam: str) -> None:
    """One sequence that is always tried: without the file's content the weights differ after the next steps."""
    machine = AnySequence()
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
