"""What is told of a training step and its replay."""

import math

import pytest
import torch
from torch import Tensor

from lightning_same.replay.report import Outcome, ReplayReport, States, compare

NOTHING = States({}, {}, {}, {})


def outcome(loss: float, *grads: float | None) -> Outcome:
    return Outcome([torch.tensor(loss)], [None if grad is None else torch.tensor([grad, 0.0]) for grad in grads])


def test_outcomes_are_equal_bit_for_bit() -> None:
    assert outcome(1.0, 2.0, None).equals(outcome(1.0, 2.0, None))
    assert outcome(math.nan, math.nan).equals(outcome(math.nan, math.nan))
    for other in (outcome(1.5, 2.0, None), outcome(1.0, 2.5, None), outcome(1.0, 2.0, 0.0), outcome(1.0, 2.0)):
        assert not outcome(1.0, 2.0, None).equals(other)
    assert not outcome(1.0, math.nan).equals(outcome(1.0, math.inf))


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        (outcome(1.0, 3.0, 4.0), outcome(9.0, 3.0, 4.0), 0.0),
        (outcome(1.0, 3.0, 4.0), outcome(1.0, 3.0, 5.0), 0.2),
        (outcome(1.0, 0.0), outcome(1.0, 0.0), 0.0),
        (outcome(1.0, 0.0), outcome(1.0, 1.0), math.inf),
        (outcome(1.0, None, 1.0), outcome(1.0, None, 1.0), 0.0),
        (outcome(1.0, None), outcome(1.0, 1.0), math.inf),
    ],
)
def test_the_distance_is_relative_to_the_norm_of_all_gradients(
    first: Outcome, second: Outcome, distance: float
) -> None:
    assert first.distance(second) == pytest.approx(distance)


@pytest.mark.parametrize(
    ("replays", "rounding_only"),
    [
        ([1.0001, 1.0002], True),
        ([1.0001], False),  # no second one to compare with
        ([1.0001, 1.0001], False),  # the kernels are deterministic
        ([1.01, 1.0101], False),
        ([1.0001, 1.01], False),
    ],
)
def test_what_differs_by_rounding_differs_as_little_once_more(replays: list[float], rounding_only: bool) -> None:
    report = compare(outcome(1.0, 1.0), [outcome(1.0, grad) for grad in replays], NOTHING)
    assert not report.exact
    assert report.rounding_only == report.is_right == rounding_only
    assert report.distance == pytest.approx(replays[0] - 1, rel=1e-3)


def test_state_is_wrong_if_it_changes_at_each_forward_and_stays() -> None:
    cached = States(start={}, left={"cache": "1"}, put_back={"cache": "1"}, end={"cache": "1"})
    counted = States(start={"n": "0"}, left={"n": "1"}, put_back={"n": "1"}, end={"n": "2"})
    same, other = outcome(1.0, 1.0), outcome(2.0, 1.0)
    assert compare(same, [same], cached).is_right  # by the first forward alone
    assert compare(same, [other, other], cached).state == ["cache"]  # it may be why the loss differs
    report = compare(same, [same], counted)
    assert report.exact
    assert report.state == ["n"]
    assert not report.is_right


def message(exact: bool, losses: tuple[float, float] | None, state: list[str], rounding: bool = False) -> str:
    return ReplayReport(exact, 0.25, losses, state, rounding).message("Net")


def test_the_message_says_what_differs_and_what_was_not_put_back() -> None:
    start = "Net.training_step does not do the same when it is replayed with the same batch and weights. "
    said = message(False, (1.25, 1.5), ["env.time"])
    assert said.startswith(f"{start}Its loss was 1.25, and 1.5 in the replay. Not put back: `env.time`. So pass two")
    said = message(False, None, [])
    assert said.startswith(f"{start}Its gradient differs by 2.5e-01 of its norm. What changes lies outside the module")
    said = message(True, None, list("abcde"))
    assert said.startswith(f"{start}Its loss and gradient are the same, but it changes state twice. Not put back: `a`,")
    assert "`d`, `e`. So" in said
    assert "`d`, `e` and 2 more. So" in message(True, None, list("abcdefg"))
    assert message(False, None, [], rounding=True).startswith(
        "Net: a replay of training_step differs from it by rounding"
    )


def test_of_several_micro_batches_the_first_loss_that_differs_is_told() -> None:
    def losses(*values: float) -> list[Tensor]:
        return list(map(torch.tensor, values))

    report = compare(Outcome(losses(1.0, 2.0, 3.0), []), [Outcome(losses(1.0, 2.5, 3.5), [])], NOTHING)
    assert report.losses == (2.0, 2.5)
