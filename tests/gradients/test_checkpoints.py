"""The split of s against g, against its definition in exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_same import checkpoint_fractions
from lightning_same.gradients.checkpoints import split
from lightning_same.gradients.pieces import PIECE, pieces

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def group(g: float, s: float) -> int:
    """The definition, by a true ratio of rationals: 0 stands for the rest."""
    if any(value != value or value in (float("inf"), -float("inf")) for value in (g, s)):
        return infinite_group(g, s)
    if g == 0:
        return 0
    r = Fraction(s) / Fraction(g)
    return 1 if r > 1 else 2 if 0 < r < 1 else 3 if r < -1 else 4 if -1 < r < 0 else 0


def infinite_group(g: float, s: float) -> int:
    """The limit of the definition; inf against inf and NaN are undecided."""
    if g != g or s != s or g == 0 or s == 0 or abs(g) == abs(s):
        return 0
    same = (g > 0) == (s > 0)
    return (1 if same else 3) if abs(s) > abs(g) else (2 if same else 4)


SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 5e-324, -5e-324, 1e-310, 2.2e-308, 1.7e308, 1.0, -1.0]


numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(width=64), st.floats(-2, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_split_is_the_definition(dtype: torch.dtype, pairs: list[tuple[float, float]]) -> None:
    g, s = (torch.tensor(column, dtype=torch.float64).to(dtype) for column in zip(*pairs, strict=True))
    masks = torch.stack(split(g, s)).to(torch.int64)
    assert masks.sum(0).max() <= 1
    found = (masks * torch.arange(1, 5)[:, None]).sum(0).tolist()
    assert found == [group(a, b) for a, b in zip(g.tolist(), s.tolist(), strict=True)]


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_fractions_sum_to_one_and_count_every_element(pairs: list[tuple[float, float]], cut: int) -> None:
    g, s = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    fractions = checkpoint_fractions([g[:cut], g[cut:]], [s[:cut], s[cut:]])
    groups = [group(a, b) for a, b in pairs]
    expected = [groups.count(k) / len(pairs) for k in (1, 2, 3, 4, 0)]
    assert [fraction.item() for fraction in fractions] == expected
    assert all(fraction.dtype == torch.float64 for fraction in fractions)
    assert sum(fractions).item() == pytest.approx(1, abs=1e-15)


def test_quadratic_has_the_closed_form() -> None:
    # L = 0.5 sum h w^2: g = h w, s = h (w + rho g/||g||), so r = 1 + rho h / ||g||.
    h = torch.tensor([3.0, 1.0, -0.5, -4.0, -20.0, 0.0], dtype=torch.float64)
    w = torch.tensor([1.0, -2.0, 0.3, 0.2, 0.1, 5.0], dtype=torch.float64)
    g = h * w
    s = h * (w + 0.5 * g / g.norm())
    ratio = 1 + 0.5 * h / g.norm()  # 1.34, 1.11, 0.94, 0.55, -1.24, and g = 0 for the last
    assert [mask.tolist().index(True) for mask in split(g, s)[:3]] == [0, 2, 4]
    assert checkpoint_fractions([g], [s]) == (2 / 6, 2 / 6, 1 / 6, 0, 1 / 6)
    assert ratio[3] > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_and_small_tensors_of_every_layout(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (PIECE + 7,), (4, 5, 6, 6), (0,), (), (7, 9), (PIECE // 2,), (PIECE // 2 + 1,)]
    g = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    s = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    g[2] = g[2].to(memory_format=torch.channels_last)
    g[5], s[5] = g[5].T.contiguous().T, s[5]
    together = checkpoint_fractions(g, s)
    flat_g, flat_s = (torch.cat([tensor.reshape(-1) for tensor in tensors]) for tensors in (g, s))
    counts = [mask.sum().item() / flat_g.numel() for mask in split(flat_g, flat_s)]
    assert [fraction.item() for fraction in together[:4]] == counts


def test_pieces_cover_every_element_once() -> None:
    tensors = [torch.zeros(n, dtype=dtype) for n in (1, PIECE, 3 * PIECE + 1, 50) for dtype in DTYPES[:2]]
    for first, second in pieces(tensors, tensors):
        assert sum(each.numel() for each in first) <= PIECE
        for a, b in zip(first, second, strict=True):
            assert a.data_ptr() == b.data_ptr()
            a += 1
    assert all(bool((tensor == 1).all()) for tensor in tensors)


@pytest.mark.parametrize(
    ("grads", "perturbed", "message"),
    [
        ([], [], "no element"),
        ([torch.zeros(0)], [torch.zeros(0)], "no element"),
        ([torch.zeros(2)], [], "got 1 and 0"),
        ([torch.zeros(2)], [torch.zeros(3)], r"got \(2,\) against \(3,\)"),
    ],
)
def test_lists_that_do_not_match_are_refused(
    grads: list[torch.Tensor], perturbed: list[torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint_fractions(grads, perturbed)
