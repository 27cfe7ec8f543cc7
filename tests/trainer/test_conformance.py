"""Contract 3: the conformance matrix, on one process and on two."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from support.conformance import (
    CASES,
    FEATURES,
    OF_OTHER_RULES,
    SINCE,
    Case,
    against_lightning,
    against_the_loop,
    feature_against_lightning,
    feature_does_something,
    overflows,
)
from support.conformance_rules import OTHER_RULES
from support.fits import LIGHTNING
from support.ranks import Ranks

TOLERANCE = {"32-true": 1e-6, "bf16-mixed": 2e-2, "16-mixed, scaled": 2e-3}
"""Of the loop by hand on one process: on two the halves of a batch are rounded by themselves.

They also overflow by themselves, at another loss scale than the whole, so that those cases have no such loop."""


TRIED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            SINCE.get(name, LIGHTNING) > LIGHTNING, reason=f"{name} came with Lightning {SINCE.get(name)}"
        ),
    )
    for name in FEATURES
]


def name_of(case: Case) -> str:
    return f"accumulate {case.accumulate}, {case.precision}, clip {case.clipping}, scheduler {case.scheduler}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_forced_pass_two_at_rho_zero_is_plain_lightning(case: Case) -> None:
    assert against_lightning(case) == []


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_sam_is_the_loop_by_hand(case: Case) -> None:
    assert against_the_loop(case) < 1e-6


@pytest.mark.parametrize("case", OF_OTHER_RULES, ids=name_of)
@pytest.mark.parametrize("rule", OTHER_RULES)
def test_other_rules_are_the_loop_by_hand(rule: str, case: Case) -> None:
    """Those to which the size of g matters, those that remember, those of one pass."""
    assert against_the_loop(case, rule) < 1e-6


def test_the_overflows_happen() -> None:
    assert overflows() >= 2


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("feature", TRIED)
def test_feature_at_rho_zero_is_plain_lightning(feature: str, accumulate: int) -> None:
    assert feature_against_lightning(feature, accumulate) == []


@pytest.mark.parametrize("feature", TRIED)
def test_feature_does_something(feature: str) -> None:
    assert feature_does_something(feature) or feature == "detect_anomaly"


def lightning_on_two(cases: list[Case]) -> dict[Case, list[str]]:
    return {case: against_lightning(case) for case in cases}


def loop_on_two(cases: list[Case]) -> dict[Case, float]:
    return {case: against_the_loop(case) for case in cases}


def rules_on_two(rule: str) -> dict[Case, float]:
    return {case: against_the_loop(case, rule) for case in OF_OTHER_RULES if case.precision in TOLERANCE}


@pytest.fixture(scope="module")
def two(ranks: dict[int, Ranks]) -> Callable[..., list[dict[Case, Any]]]:
    """Cases on two processes, each with its own data and random numbers: a part of the matrix in each call."""

    @cache
    def found(function: Any, accumulate: int, precision: str) -> list[dict[Case, Any]]:
        part = [case for case in CASES if (case.accumulate, case.precision) == (accumulate, precision)]
        return ranks[2].run(function, part)

    return found


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_two_processes(two: Callable[..., list[dict[Case, Any]]], ranks: dict[int, Ranks], case: Case) -> None:
    part = case.accumulate, case.precision
    assert [found[case] for found in two(lightning_on_two, *part)] == [[], []]
    if case.precision in TOLERANCE:
        assert max(found[case] for found in two(loop_on_two, *part)) < TOLERANCE[case.precision]


@pytest.mark.parametrize("rule", OTHER_RULES)
def test_other_rules_on_two_processes(ranks: dict[int, Ranks], rule: str) -> None:
    for found in ranks[2].run(rules_on_two, rule):
        for case, difference in found.items():
            assert difference < TOLERANCE[case.precision], name_of(case)


@pytest.mark.parametrize("feature", TRIED)
def test_features_on_two_processes(ranks: dict[int, Ranks], feature: str) -> None:
    assert ranks[2].run(feature_against_lightning, feature, 1) == [[], []]
