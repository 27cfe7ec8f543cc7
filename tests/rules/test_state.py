"""What a rule keeps from step to step."""

import math
from typing import Any

import pytest
import torch
from support.fits import fit
from support.nets import Plain as Plain32
from support.nets import build
from torch import Tensor

from lightning_same import AESAM, FriendlySAM, LookSAM, Memory, Rule, VaSSO, with_sam


@pytest.mark.parametrize("rule", [FriendlySAM(), VaSSO(), LookSAM(), AESAM()], ids=repr)
def test_a_rule_that_remembers_asks_for_a_memory(rule: Rule) -> None:
    w = [torch.ones(2)]
    assert rule.stateful
    with pytest.raises(ValueError, match=r"Make `memory = Memory\(params\)` once"), rule.perturbed(w, w):
        pass
    with pytest.raises(ValueError, match="keeps a state from step to step"):
        rule.combine(w, w)


@pytest.mark.parametrize("rule", [FriendlySAM(0.1), VaSSO(0.1), LookSAM(0.1, k=2)], ids=repr)
def test_an_overflow_that_the_scaler_skips_is_not_remembered(rule: Rule) -> None:
    overflows: list[bool] = []

    class Overflows(Plain32):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * 1e38 if batch_idx == 2 else loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            overflows.append(not all(param.grad.isfinite().all() for param in self.parameters()))

    module = with_sam(build(Overflows), rule)
    fit(module, precision="16-scaled")
    assert overflows.count(True) == 2
    assert all(param.isfinite().all() for param in module.parameters())


def test_a_memory_keeps_what_it_had_where_a_value_is_not_finite() -> None:
    params = [torch.zeros(2), torch.zeros(3)]
    memory = Memory(params)
    memory.set("m", [torch.full((2,), math.inf), torch.ones(3)])
    assert all(torch.equal(m, torch.zeros_like(m)) for m in memory.get("m") if m is not None)
    memory.set("m", [torch.ones(2), torch.ones(3)])
    memory.set("m", [torch.ones(2), torch.full((3,), math.nan)])
    assert all(torch.equal(m, torch.ones_like(m)) for m in memory.get("m") if m is not None)
    assert memory.view(params[1:]).get("m")[0] is memory.get("m")[1]
    assert memory.view([torch.zeros(2)]).get("m") == [None]


def test_friendly_sam_subtracts_what_it_has_beside_a_parameter_that_is_new() -> None:
    """As where a callback unfreezes a layer."""
    rule = FriendlySAM(0.3, sigma=0.5, keep=0.75)
    w = [torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    memory = Memory(w)
    first, second = torch.tensor([4.0, -3.0], dtype=torch.float64), torch.tensor([1.0, 5.0], dtype=torch.float64)
    new = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    with rule.perturbed(w[:1], [first], memory=memory):
        torch.testing.assert_close(w[0], 0.3 * first / 5)
    with rule.perturbed(w, [second, new], memory=memory):
        u = [second - 0.5 * first, new]  # the average begins with the first gradient
        expected = [0.3 * part / torch.cat(u).norm() for part in u]
        torch.testing.assert_close(w, expected, rtol=1e-12, atol=0)


def test_the_place_of_the_copy_follows_the_parameters() -> None:
    params = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    memory = Memory(params)
    room = memory.scratch()
    assert [each.data_ptr() for each in memory.view(params[:1]).scratch()] == [room[0].data_ptr()]
    params[0].data = torch.randn(5, dtype=torch.float64)
    assert memory.scratch()[0].shape == (5,)
    assert memory.scratch()[0].dtype == torch.float64
    assert not memory
    assert memory.state_dict({}) == {"numbers": {}, "tensors": {}}


def test_a_memory_is_put_back_with_its_numbers_and_without_what_has_come_since() -> None:
    old, new = torch.zeros(2), torch.zeros(3)
    memory = Memory([old, new])
    memory.numbers["kept"] = 1.0
    memory.view([old]).set("m", [torch.ones(2)])
    put_back = memory.copy()
    memory.numbers |= {"kept": 2.0, "later": 3.0}
    memory.set("m", [torch.full((2,), 5.0), torch.ones(3)])
    memory.set("n", [torch.ones(2), torch.ones(3)])
    put_back()
    assert memory.numbers == {"kept": 1.0}
    kept, nothing = memory.get("m")
    assert nothing is None
    assert kept is not None
    assert kept.tolist() == [1.0, 1.0]
    assert memory.get("n") == [None, None]


def test_a_memory_is_loaded_by_names() -> None:
    first, second, third = (torch.zeros(2) for _ in range(3))
    memory = Memory([first, second, third])
    memory.view([first, third]).set("m", [torch.ones(2), torch.full((2,), 3.0)])
    state = memory.state_dict({first: "first", second: "second", third: "third"})
    params = {"third": torch.zeros(2), "new": torch.zeros(2), "second": torch.zeros(2), "first": torch.zeros(2)}
    loaded = Memory(list(params.values()))
    loaded.load_state_dict(state, params)
    assert [None if m is None else m.tolist() for m in loaded.get("m")] == [[3.0, 3.0], None, None, [1.0, 1.0]]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ([], "its memory must hold `numbers` and `tensors`, got"),
        ({"numbers": {}}, "its memory must hold `numbers` and `tensors`, got a mapping with"),
        ({"numbers": [1.0], "tensors": {}}, "`numbers` must be numbers by name"),
        ({"numbers": {"a": 1.0, "b": "2"}, "tensors": {}}, "`numbers` must be numbers by name"),
        ({"numbers": {}, "tensors": [torch.zeros(2)]}, "`tensors` must be tensors by name"),
        ({"numbers": {}, "tensors": {"m": [torch.zeros(2)]}}, "`m` must hold a tensor for each parameter"),
        ({"numbers": {}, "tensors": {"m": {"w": 1.0}}}, r"`m` of w must be a tensor of shape \(2,\), got 1"),
        ({"numbers": {}, "tensors": {"m": {"w": torch.zeros(3)}}}, r"`m` of w .* \(2,\), got one of shape \(3,\)"),
    ],
)
def test_what_no_memory_has_saved_is_refused_and_changes_nothing(state: Any, why: str) -> None:
    w = torch.zeros(2)
    memory = Memory([w])
    memory.numbers["kept"] = 1.0
    with pytest.raises(ValueError, match=why):
        memory.load_state_dict(state, {"w": w})
    assert memory.state_dict({w: "w"}) == {"numbers": {"kept": 1.0}, "tensors": {}}


def test_tensors_of_unknown_names_may_be_of_any_kind() -> None:
    memory = Memory([torch.zeros(2)])
    memory.load_state_dict({"numbers": {"a": 1, "b": 2.5}, "tensors": {"m": {"gone": torch.zeros(9)}}}, {})
    assert memory.numbers == {"a": 1, "b": 2.5}
