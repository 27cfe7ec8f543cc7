"""Norms and the histogram of ratios, against numpy in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_same.gradients.checkpoints import checkpoint_counts, ratio_counts
from lightning_same.gradients.norms import GradientNorms, gradient_norms
from lightning_same.gradients.pieces import PIECE

# Many ties: zeros, equal sizes, and ratios that lie on an edge exactly.
VALUES = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 4.0, 8.0, -16.0, 20.0, 1.3, -1.1, 3e-9, -5e8])


PAIRS = st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=9), min_size=1, max_size=4)


def numpy_masks(g: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        r = np.where((g == 0) | (s == 0), np.nan, s / g)
    return [r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)]


def numpy_norms(g: np.ndarray, s: np.ndarray) -> list[float]:
    base, perturbed = np.sqrt((g**2).sum()), np.sqrt((s**2).sum())
    cosine = (g * s).sum() / (base * perturbed) if base * perturbed else 0.0
    return [base, perturbed, *(np.sqrt((s[mask] ** 2).sum()) for mask in numpy_masks(g, s)), cosine]


def numpy_bins(g: np.ndarray, s: np.ndarray) -> list[list[int]]:
    edges = [1, 1.2, 1.5, 2, 4, 8, 16, np.inf]
    rows = []
    for k, mask in enumerate(numpy_masks(g, s)):
        r = np.abs(s[mask] / g[mask])
        size = r if k in (0, 2) else 1 / r
        rows.append([int(((size > low) & (size <= high)).sum()) for low, high in pairwise(edges)])
    return rows


@given(pairs=PAIRS)
@settings(max_examples=200, deadline=None)
def test_norms_and_bins_are_numpys(pairs: list[list[tuple[float, float]]]) -> None:
    g, s = ([torch.tensor([pair[i] for pair in tensor], dtype=torch.float64) for tensor in pairs] for i in (0, 1))
    flat_g, flat_s = torch.cat(g).numpy(), torch.cat(s).numpy()
    assert [value.item() for value in gradient_norms(g, s)] == pytest.approx(
        numpy_norms(flat_g, flat_s), rel=1e-12, abs=1e-12
    )
    bins = ratio_counts(g, s)
    assert bins.tolist() == numpy_bins(flat_g, flat_s)
    assert torch.equal(bins.sum(dim=1), checkpoint_counts(g, s))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_any_size_layout_and_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (2 * PIECE + 5,), (7, 9), (0,), (40, 3, 5)]
    g = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    s = [each + 0.5 * torch.randn(each.shape, generator=generator).to(dtype) for each in g]
    g[5], s[5] = g[5].transpose(0, 2), s[5].transpose(0, 2)
    flat_g, flat_s = (torch.cat([each.double().flatten() for each in list_]).numpy() for list_ in (g, s))
    found = [value.item() for value in gradient_norms(g, s)]
    assert found == pytest.approx(numpy_norms(flat_g, flat_s), rel=1e-5)
    assert ratio_counts(g, s).sum(dim=1).tolist() == [int(mask.sum()) for mask in numpy_masks(flat_g, flat_s)]
    if dtype != torch.float32:  # Exact in float32, where the products with the edges do not round.
        assert ratio_counts(g, s).tolist() == numpy_bins(flat_g, flat_s)


def test_counts_are_exact_however_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is not contiguous is one piece, whatever its size."""
    monkeypatch.setattr("lightning_same.gradients.checkpoints.EXACT", 7)
    g, s = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    expected = [int(mask.sum()) for mask in numpy_masks(g.numpy(), s.numpy())]
    assert checkpoint_counts([g], [s]).tolist() == expected


def test_a_long_sum_in_half_precision_does_not_stand_still() -> None:
    """256 + 1 is 256 in bfloat16."""
    ones = [torch.ones(300_000, dtype=torch.bfloat16)]
    assert gradient_norms(ones, ones).base.item() == pytest.approx(300_000**0.5)


def test_the_loss_scale_is_taken_out_of_norms_and_not_of_the_cosine() -> None:
    g, s = [torch.tensor([3.0, 4.0])], [torch.tensor([6.0, 0.0])]
    plain = gradient_norms(g, s)
    scaled = gradient_norms([1024 * g[0]], [1024 * s[0]], torch.tensor(1024.0))
    assert plain == scaled == GradientNorms(5, 6, 6, 0, 0, 0, torch.tensor(0.6, dtype=torch.float64))


def test_a_zero_gradient_has_cosine_0_and_parallel_ones_at_most_1() -> None:
    zero, one = [torch.zeros(3)], [torch.ones(3)]
    assert gradient_norms(zero, one).cosine == gradient_norms(one, zero).cosine == 0
    generator = torch.Generator().manual_seed(0)
    cosines = [gradient_norms([x], [3 * x]).cosine for x in torch.randn(200, 17, generator=generator)]
    assert max(cosines) == 1.0


def test_what_is_not_finite_is_not_hidden() -> None:
    for bad in (float("nan"), float("inf")):
        norms = gradient_norms([torch.tensor([1.0, 1.0])], [torch.tensor([2.0, bad])])
        assert not norms.perturbed.isfinite()
        assert not norms.ckpt1.isfinite()
        assert norms.base == pytest.approx(2**0.5)


def test_an_infinite_element_stays_in_its_own_checkpoint() -> None:
    """And in none if g is 0 there."""
    inf = float("inf")
    g, s = [torch.tensor([1.0, 1.0, -1.0, -2.0, 0.0])], [torch.tensor([inf, 0.5, 3.0, 1.5, -inf])]
    norms = gradient_norms(g, s)
    assert [norms.ckpt1, norms.ckpt2, norms.ckpt3, norms.ckpt4] == [inf, 0.5, 3.0, 1.5]
    assert norms.perturbed == inf
    opposite = gradient_norms(g, [-s[0]])
    assert [opposite.ckpt1, opposite.ckpt2, opposite.ckpt3, opposite.ckpt4] == [3.0, 1.5, inf, 0.5]


def test_lists_that_do_not_match_are_named() -> None:
    one, two = [torch.ones(2)], [torch.ones(2), torch.ones(2)]
    for function in (gradient_norms, ratio_counts, checkpoint_counts):
        with pytest.raises(ValueError, match=r"one tensor per parameter each, got 1 and 2"):
            function(one, two)
        with pytest.raises(ValueError, match=r"same shapes in the same order, got \(2,\) against \(3,\)"):
            function(one, [torch.ones(3)])
    with pytest.raises(ValueError, match="`grads` holds no element"):
        gradient_norms([], [])
