"""What a rule costs, by counts that no machine changes: operations and bytes. Nothing is timed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from support.counting import RULES, Counted
from torch.profiler import ProfilerActivity, profile

from lightning_same import GSAM, SAM, SAME, Rule
from lightning_same.gradients import tensors
from lightning_same.rules.state import Memory


def dispatched(rule: Rule, count: int) -> tuple[int, int]:
    """By the rule in its third step, for gradients that are given: operations on elements, and views."""
    params = [torch.randn(60_000 // count, requires_grad=True) for _ in range(count)]
    grads, perturbed_grads = ([torch.randn_like(p) for p in params] for _ in range(2))
    memory = Memory(params)

    def step() -> None:
        with rule.perturbed(params, grads, memory=memory):
            pass
        rule.combine_(grads, perturbed_grads, memory=memory)

    step()
    step()
    with Counted() as counted:
        step()
    return counted.names.total(), counted.views


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_as_many_operations_for_2000_tensors_as_for_10(rule: Rule) -> None:
    few, many = dispatched(rule, 10), dispatched(rule, 2000)
    assert few[0] == many[0]
    if not rule.combination.needs_grads:
        assert few[1] == many[1]


def test_sam_dispatches_no_more_than_its_formula() -> None:
    """To keep w; the norm by four, one of which only names a dtype, and its inverse by two; w + e; and back."""
    assert sum(dispatched(SAM(), 10)) == 9


def test_accelerators_take_the_same_step_by_other_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [torch.randn(5), torch.randn(3, 2), torch.randn(())]
    grads = [torch.randn_like(p) for p in params]
    moved = []
    for devices in (tensors.ONE_CALL, frozenset()):
        monkeypatch.setattr(tensors, "ONE_CALL", devices)
        moved.append([p.clone() for p in params])
        with SAM().perturbed(moved[-1], grads, rho=[0.1, 0.0, 0.3]):
            moved[-1] = [p.clone() for p in moved[-1]]
    for one_call, three, before in zip(*moved, params, strict=True):
        torch.testing.assert_close(one_call, three, rtol=1e-6, atol=1e-6)
        assert one_call is not before
    assert torch.equal(moved[1][1], params[1])
    assert not torch.equal(moved[1][0], params[0])
    few, many = dispatched(SAM(), 10), dispatched(SAM(), 2000)
    assert few == many == (11, 0)


@contextmanager
def most_bytes() -> Iterator[Callable[[], int]]:
    """The most that is allocated at once in a ``with`` block, beyond what was there at its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield lambda: most
    alive = most = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)


@pytest.mark.parametrize(("rule", "copies"), [(SAM(), 1), (SAME(1, 2.0), 1), (GSAM(), 1)], ids=repr)
def test_a_rule_needs_room_for_one_copy_of_the_weights(rule: Rule, copies: int) -> None:
    """And for temporaries of a bounded size, scalars apart; the next step needs the same room, and no more."""
    params = [torch.randn(50_000, requires_grad=True) for _ in range(40)]
    size = sum(param.nbytes for param in params)
    bounded = 4 * max(tensors.RUN, 6 * tensors.PIECE)
    grads, perturbed_grads = ([torch.randn_like(p) for p in params] for _ in range(2))
    memory = Memory(params)

    def step() -> None:
        with rule.perturbed(params, grads, memory=memory):
            pass
        if rule.combination.needs_grads:
            rule.combine_(grads, perturbed_grads, memory=memory)

    with most_bytes() as first:
        step()
    with most_bytes() as second:
        step()
    room = size * copies
    passing = size if isinstance(rule, GSAM) else 0
    assert room < first() <= room + bounded + passing
    assert second() <= bounded + passing
