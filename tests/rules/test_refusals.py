"""Arguments that cannot work are refused when the rule is made, by the name the user has written."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from lightning_same import (
    AESAM,
    ASAM,
    GSAM,
    SAM,
    SAME,
    SANER,
    WSAM,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    Every,
    FriendlySAM,
    GradientNormPenalty,
    LargeGradient,
    LastFraction,
    LookSAM,
    Memory,
    Progress,
    VaSSO,
)
from lightning_same.rules.settings import is_finite


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e300, Fraction(10**400), 3.5e38, math.inf, math.nan])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: SAM(x),
        lambda x: SAME(1, x),
        lambda x: SANER(x),
        lambda x: CheckpointGains(1.0, 1.0, x),
        lambda x: GSAM(alpha=x),
        lambda x: FriendlySAM(sigma=x),
        lambda x: AESAM(start=x),
    ],
)
def test_what_float32_cannot_hold_is_refused(make: Callable[[Any], Any], number: Any) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        make(number)
    assert not is_finite(number)


def test_the_reason_is_given_for_a_number_that_is_finite() -> None:
    with pytest.raises(ValueError, match=r"GSAM: `alpha` must be a finite number within float32's range .*, got 1e"):
        GSAM(alpha=1e300)
    with pytest.raises(ValueError, match=r"got an integer of \d+ bits"):
        SAM(10**5000)


@pytest.mark.parametrize("rho", [1e300, 1e30, 1.9e19])
def test_a_radius_whose_square_overflows_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match=r"SAM: `rho` must be a finite number >= 0 and <= 1.8e\+19, got 1"):
        SAM(rho)
    assert not (torch.tensor(rho) ** 2).isfinite()
    assert (torch.tensor(SAM(1.8e19).rho) ** 2).isfinite()


def test_a_fraction_is_a_number() -> None:
    half = Fraction(1, 2)
    for rule in (SAM(half), SAME(1, half), CheckpointGains(half, rho=half), GSAM(alpha=half), LastFraction(half)):
        assert "Fraction(" not in repr(rule).replace("LastFraction(", "")
        assert eval(repr(rule)) == rule
    assert CheckpointGains(half).combine([torch.ones(1)], [torch.full((1,), 4.0)])[0].item() == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientNormPenalty(alpha="x"), "GradientNormPenalty: `alpha`"),
        (lambda: GSAM(alpha=None), "GSAM: `alpha`"),
        (lambda: ASAM(eta=-1), "ASAM: `eta`"),
        (lambda: FriendlySAM(keep=2), "FriendlySAM: `keep`"),
        (lambda: VaSSO(theta=0), "VaSSO: `theta`"),
        (lambda: LookSAM(k=0), "LookSAM: `k`"),
        (lambda: LookSAM(alpha="x"), "LookSAM: `alpha`"),
        (lambda: AESAM(end="x"), "AESAM: `end`"),
        (lambda: WSAM(gamma=1), "WSAM: `gamma`"),
        (lambda: CustomSAME(1e-39), "CustomSAME: `condition` must be a finite number >= 2.9"),
    ],
)
def test_the_rule_is_named_and_not_a_part_of_it(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("ckpt", [{1: 2}, b"\x01", np.array(1.0), torch.tensor([1, 3]), [[1]], None])
def test_what_is_no_choice_of_checkpoints_is_refused(ckpt: Any) -> None:
    for make in (SAME, CheckpointSelect):
        with pytest.raises(ValueError, match="must be one of 1, 2, 3, 4"):
            make(ckpt)


def test_a_whole_number_that_no_computation_holds_is_refused() -> None:
    for make in (lambda: Every(10**400), lambda: SANER(warmup_epochs=2**63)):
        with pytest.raises(ValueError, match="must be a whole number"):
            make()


@pytest.mark.parametrize("total", [1, 9, 10, 20, 100, 1000, 999_983])
@pytest.mark.parametrize("percent", [0, 5, 7, 29, 30, 57, 70, 85, 95, 99, 100])
def test_the_last_fraction_has_the_length_of_exact_arithmetic(percent: int, total: int) -> None:
    timing = LastFraction(percent / 100)
    count = percent * total // 100
    assert not timing.active(Progress(total - count - 1, total=total))
    if count:
        assert timing.active(Progress(total - count, total=total))
        assert timing.active(Progress(total - 1, total=total))


def test_a_third_of_nine_steps_is_three() -> None:
    assert [LastFraction(1 / 3).active(Progress(step, total=9)) for step in range(9)].count(True) == 3


def test_a_squared_norm_beyond_float64_perturbs_and_is_not_remembered() -> None:
    timing, memory = LargeGradient(), Memory([])
    at = Progress(0, total=10)
    for norm in (1e200, 1e100):  # The square of the second is finite, and that of its deviation is not.
        assert timing.confirmed([torch.tensor([norm], dtype=torch.float64)], at, memory)
    assert memory.numbers == {}
