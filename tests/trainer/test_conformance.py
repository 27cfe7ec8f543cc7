"""Contract 3: the conformance matrix, on one process and on two."""

from typing import Any

import pytest
from support.conformance import (
    CASES,
    FEATURES,
    SINCE,
    Case,
    against_lightning,
    against_the_loop,
    feature_against_lightning,
    feature_does_something,
    overflows,
)
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


def test_the_overflows_happen() -> None:
    assert overflows() >= 2


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("feature", TRIED)
def test_feature_at_rho_zero_is_plain_lightning(feature: str, accumulate: int) -> None:
    assert feature_against_lightning(feature, accumulate) == []


@pytest.mark.parametrize("feature", TRIED)
def test_feature_does_something(feature: str) -> None:
    assert feature_does_something(feature) or feature == "detect_anomaly"


def on_two(kind: str) -> dict[Any, Any]:
    if kind == "features":
        return {name: feature_against_lightning(name, 1) for name in FEATURES}
    check = against_lightning if kind == "lightning" else against_the_loop
    return {case: check(case) for case in CASES}


@pytest.fixture(scope="module")
def two(ranks: dict[int, Ranks]) -> dict[str, list[dict[Any, Any]]]:
    """All cases on two processes, each with its own data and random numbers."""
    return {kind: ranks[2].run(on_two, kind) for kind in ("lightning", "loop", "features")}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_two_processes(two: dict[str, list[dict[Any, Any]]], case: Case) -> None:
    assert [found[case] for found in two["lightning"]] == [[], []]
    if case.precision in TOLERANCE:
        assert max(found[case] for found in two["loop"]) < TOLERANCE[case.precision]


@pytest.mark.parametrize("feature", TRIED)
def test_features_on_two_processes(two: dict[str, list[dict[Any, Any]]], feature: str) -> None:
    assert [found[feature] for found in two["features"]] == [[], []]
