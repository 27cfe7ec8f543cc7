"""What a rule costs, by counts that no machine changes: operations and bytes. Nothing is timed."""

from contextlib import nullcontext

import pytest
import torch
from support.accelerator import LikeAnAccelerator
from support.counting import ALL_RULES, Counted, most_bytes
from torch import Tensor

from lightning_same import AESAM, SAM, FriendlySAM, LookSAM, Memory, Progress, RandomGains, Rule, VaSSO
from lightning_same.gradients import pieces, tensors

TOTAL = 100
"""Steps of the training that the counted steps are of."""

LAYOUTS = ["contiguous", "channels_last", "transposed"]


class Problem:
    """Weights and gradients of a rule, whose steps are taken here as a plain loop takes them."""

    def __init__(self, rule: Rule, shapes: list[tuple[int, ...]], dtype: torch.dtype, layout: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def values() -> list[Tensor]:
            made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
            if layout == "channels_last":
                return [tensor.to(memory_format=torch.channels_last) for tensor in made]
            return [tensor.transpose(0, -1) for tensor in made] if layout == "transposed" else made

        self.rule = rule
        self.params = [value.requires_grad_() for value in values()]
        self.grads, self.perturbed_grads = values(), values()
        self.memory = Memory(self.params)

    def step(self, number: int) -> None:
        """One step, given the gradients of both passes."""
        rule, at = self.rule, Progress(number, total=TOTAL)
        if rule.stateful:
            self.memory.copy()
        if rule.ahead or rule.takes_pass_two(self.grads, at, self.memory):
            with rule.perturbed(self.params, self.grads, at=at, memory=self.memory):
                pass
            if rule.combination.needs_grads:
                rule.combine_(self.grads, self.perturbed_grads, at, self.memory)
        else:
            rule.plain_step_(self.grads, self.memory)


def dispatched(rule: Rule, count: int, dtype: torch.dtype, layout: str) -> list[int]:
    """Operations on elements of steps in the steady state, of both kinds of LookSAM's."""
    problem = Problem(rule, [(2, 3, 9600 // count, 1 + (layout != "contiguous"))] * count, dtype, layout)
    counts = []
    for number in range(6):
        with Counted() if number in (3, 5) else nullcontext() as counted:
            problem.step(number)
        if counted is not None:
            counts.append(counted.names.total())
    return counts


@pytest.mark.parametrize("one_call", [True, False], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_as_many_operations_for_120_tensors_as_for_10(
    rule: Rule, dtype: torch.dtype, layout: str, one_call: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not one_call:
        monkeypatch.setattr(tensors, "ONE_CALL", frozenset())
    assert dispatched(rule, 10, dtype, layout) == dispatched(rule, 120, dtype, layout)


def test_sam_dispatches_no_more_than_its_formula() -> None:
    """To keep w; the norm by four, one of which only names a dtype, and its inverse by two; w + e; and back."""
    assert dispatched(SAM(), 10, torch.float32, "contiguous") == [9, 9]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_an_accelerator_neither_waits_nor_falls_back_to_one_kernel_per_tensor(
    rule: Rule, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "ONE_CALL", frozenset())
    problem = Problem(rule, [(4, 3, 5, 2), (2, 1, 1, 3), (3, 3, 2, 2)], dtype, layout)
    with LikeAnAccelerator(may_wait=isinstance(rule, AESAM)):
        for number in range(6):
            problem.step(number)


def test_an_accelerator_mixes_dtypes_without_one_kernel_per_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of either precision, and a momentum in float32 for weights in bfloat16."""
    monkeypatch.setattr(tensors, "ONE_CALL", frozenset())
    params = [torch.zeros(3), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.float64)]
    grads = [torch.full((3,), 1.0), torch.full((4,), 1.0), torch.full((5,), 1.0)]
    with LikeAnAccelerator(), SAM(2.0).perturbed(params, grads):
        lengths = [param.double().norm() for param in params]
    expected = [2 * (count / 12) ** 0.5 for count in (3, 4, 5)]
    assert [length.item() for length in lengths] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if not isinstance(rule, AESAM)], ids=repr)
def test_accelerators_take_the_same_step_by_other_operations(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for devices in (tensors.ONE_CALL, frozenset()):
        monkeypatch.setattr(tensors, "ONE_CALL", devices)
        problem = Problem(rule, [(5,), (3, 2), ()], torch.float32, "contiguous")
        with rule.perturbed(problem.params, problem.grads, [0.1, 0.0, 0.3], memory=problem.memory):
            moved.append([param.detach().clone() for param in problem.params])
        assert torch.equal(moved[-1][1], problem.params[1])
        assert not torch.equal(moved[-1][0], problem.params[0])
    for one_call, three in zip(*moved, strict=True):
        torch.testing.assert_close(one_call, three, rtol=1e-6, atol=1e-6)


KEPT = {FriendlySAM: 1, VaSSO: 1, LookSAM: 1}
"""Copies of the parameters that a rule keeps from step to step."""

PASSING = {RandomGains: 12.3}
"""Copies that are allocated and released within a step."""


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_a_rule_needs_room_for_one_copy_of_the_weights_and_what_it_keeps(rule: Rule) -> None:
    """And for temporaries of a bounded size; the next steps need the same room, and no more."""
    problem = Problem(rule, [(50_000,)] * 40, torch.float32, "contiguous")
    problem.memory.copy = lambda: lambda: None  # type: ignore[method-assign]
    size = sum(param.nbytes for param in problem.params)
    bounded = 4 * 7 * pieces.PIECE
    kept, passing = 1 + KEPT.get(type(rule), 0), PASSING.get(type(rule), 0)
    with most_bytes() as first:
        problem.step(0)
    assert kept * size <= first() <= (kept + passing) * size + bounded
    for number in (1, 5):
        with most_bytes() as later:
            problem.step(number)
        assert later() <= passing * size + bounded


def test_a_copy_of_the_memory_takes_the_same_place_at_every_step() -> None:
    problem = Problem(VaSSO(), [(50_000,)] * 40, torch.float32, "contiguous")
    size = sum(param.nbytes for param in problem.params)
    problem.step(0)
    with most_bytes() as first:
        problem.memory.copy()
    with most_bytes() as second:
        problem.memory.copy()
    assert first() == size
    assert second() == 0
