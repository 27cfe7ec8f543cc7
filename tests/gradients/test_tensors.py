"""Arithmetic on lists of tensors of several kinds, and of results that nobody derives."""

import math

import pytest
import torch

from lightning_same.gradients.checkpoints import checkpoint_counts, checkpoint_fractions, ratio_counts
from lightning_same.gradients.effects import amplifications, checkpoint_effects, dominated_shares, noisy_shares
from lightning_same.gradients.norms import gradient_norms
from lightning_same.gradients.pieces import by_kind, runs
from lightning_same.gradients.tensors import all_finite, global_norm, inverse


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_bad_element_of_any_kind_is_seen(bad: float) -> None:
    kinds = [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.bfloat16), torch.ones(0)]
    assert all_finite(kinds)
    assert all_finite([])
    for place in range(3):
        tensors = [tensor.clone() for tensor in kinds]
        tensors[place][-1] = bad
        assert not all_finite(tensors)
        assert not all_finite(tensors[place : place + 1])
        assert not all_finite([tensors[place - 1], tensors[place]])


def test_a_norm_is_over_all_kinds() -> None:
    tensors = [torch.tensor([2.0]), torch.tensor([3.0], dtype=torch.float64), torch.tensor([6.0], dtype=torch.bfloat16)]
    for order in (tensors, tensors[::-1]):
        assert global_norm(order).item() == 7


def test_kinds_are_told_apart() -> None:
    here, wide = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert [len(group) for (group,) in by_kind([here, wide, here])] == [2, 1]
    assert [len(a) for a, _ in by_kind([here, here], [here, wide])] == [1, 1]
    assert [len(a) for a, _ in by_kind([here, here], [wide, wide])] == [2]


def test_runs_cover_a_list_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_same.gradients.pieces.RUN", 10)
    sizes = [4, 6, 1, 30, 9, 2, 0]
    found = [sizes[run] for run in runs([torch.ones(size) for size in sizes])]
    assert found == [[4, 6], [1], [30], [9], [2, 0]]
    assert list(runs([])) == []


def test_the_inverse_of_nothing_is_nothing_and_of_nan_is_nan() -> None:
    found = inverse(torch.tensor([0.0, 1e-40, 2.0, math.inf, math.nan]))
    assert found[:4].tolist() == [0.0, 0.0, 0.5, 0.0]
    assert found[4].isnan()


def test_no_result_has_a_history() -> None:
    """Also of gradients that have one, by ``create_graph=True``; and one tensor is enough."""
    w = torch.ones(3, requires_grad=True)
    (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    s = g * torch.tensor([2.0, 0.5, -3.0])
    found = [
        *checkpoint_fractions([g], [s]),
        checkpoint_counts([g], [s]),
        ratio_counts([g], [s]),
        *gradient_norms([g], [s]),
        checkpoint_effects([g], [s], {"loss": [g]}).squares,
        *checkpoint_effects([g], [s], {"loss": [g]}).dots.values(),
        noisy_shares([g], [s], [s]),
        dominated_shares([g], [s], [g], [2 * g]),
        *(value for each in amplifications(([g], [s]), ([2 * g], [s])).values() for value in each),
    ]
    assert not any(value.requires_grad for value in found)
