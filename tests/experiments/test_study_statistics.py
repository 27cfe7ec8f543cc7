"""Intervals that cover, and verdicts that follow the rule."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.planted import EPOCHS, run_of, same, study_of

from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.statistics import Interval, comparisons, interval, phase_means, verdict


def test_the_interval_is_students() -> None:
    """Against the table of t: 4.303 for 2 degrees of freedom, 2.776 for 4."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert 2 - found.low == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    values = [0.1, -0.4, 0.3, 0.9, 0.2]
    half = 2.776 * float(np.std(values, ddof=1)) / math.sqrt(5)
    assert interval(values)[1:] == pytest.approx((0.22 - half, 0.22 + half), rel=1e-3)


def test_too_few_seeds_have_no_interval_and_no_sign() -> None:
    for values in [], [3.0]:
        found = interval(values)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.sign == 0


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_at_the_nominal_rate(seeds: int) -> None:
    """Of 2000 means of normal differences; the standard deviation of the rate is 0.5%."""
    rng = np.random.default_rng(seeds)
    truth = 0.03
    draws = rng.normal(truth, 0.02, (2000, seeds))
    covered = np.mean([found.low <= truth <= found.high for found in map(interval, draws.tolist())])
    assert abs(covered - 0.95) < 0.015


HIGHER, LOWER, NEITHER = Interval(1, 0.5, 1.5), Interval(-1, -1.5, -0.5), Interval(0.4, -0.1, 0.9)


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (LOWER, HIGHER, "useful pattern"),
        (HIGHER, HIGHER, "useful pattern"),
        (HIGHER, LOWER, "noisy fitting"),
        (LOWER, LOWER, "underfitting"),
        (NEITHER, HIGHER, "undecided"),
        (NEITHER, LOWER, "undecided"),
        (HIGHER, NEITHER, "undecided"),
        (LOWER, NEITHER, "undecided"),
        (NEITHER, NEITHER, "undecided"),
        (Interval(1, 0, 2), HIGHER, "undecided"),  # an end at zero includes zero
        (interval([]), HIGHER, "undecided"),
    ],
)
def test_verdicts_follow_the_rule(train: Interval, validation: Interval, expected: str) -> None:
    assert verdict(train, validation) == expected


def curves_of(runs: list[Run], effect: dict[str, Any], rng: np.random.Generator, noise: float = 0.01) -> pd.DataFrame:
    """Accuracies of 0.6 plus what the seed adds to all methods, plus the planted effects of (phase, metric)."""
    common = {seed: rng.normal(0, 0.05) for seed in {run.seed for run in runs}}
    rows = []
    for run in runs:
        own = {(phase, name): rng.normal(0, noise) for phase in ("early", "late") for name in ("train", "validation")}
        for epoch in range(1, EPOCHS + 1):
            phase = "early" if epoch <= 5 else "late" if epoch > 15 else "middle"
            row: dict[str, Any] = {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
            for name, metric in ("train", "train_eval/accuracy"), ("validation", "val/accuracy"):
                planted = effect.get(run.method, {}).get((phase, name), 9.0 if phase == "middle" else 0.0)
                row[metric] = 0.6 + common[run.seed] + own.get((phase, name), 0) + planted
            rows.append(row)
    return pd.DataFrame(rows)


PLANTED = {
    "noisy": {("early", "train"): 0.2, ("early", "validation"): -0.2},
    "useful": {("late", "train"): -0.2, ("late", "validation"): 0.2},
    "both": {("late", "train"): 0.2, ("late", "validation"): 0.2},
    "neither": {("early", "train"): -0.2, ("early", "validation"): -0.2},
}


def test_planted_effects_are_found_in_their_phase_and_nowhere_else() -> None:
    runs = [run_of(method, seed) for method in ("SAM", *PLANTED) for seed in range(5)]
    found = comparisons(study_of(runs), runs, curves_of(runs, PLANTED, np.random.default_rng(0), noise=0.002))
    verdicts = {(row["variant"], row["phase"]): row["verdict"] for _, row in found.iterrows()}
    assert verdicts == {
        ("noisy", "early"): "noisy fitting",
        ("noisy", "late"): "undecided",
        ("useful", "early"): "undecided",
        ("useful", "late"): "useful pattern",
        ("both", "early"): "undecided",
        ("both", "late"): "useful pattern",
        ("neither", "early"): "underfitting",
        ("neither", "late"): "undecided",
    }
    row = found[(found["variant"] == "noisy") & (found["phase"] == "early")].iloc[0]
    assert row["train"] == pytest.approx(0.2, abs=0.01)
    assert row["seeds"] == 5


def test_over_200_studies_intervals_cover_and_nothing_is_seldom_something() -> None:
    """The rate has a standard deviation of 1.5%; a verdict needs two intervals that miss, at 5% each."""
    runs = [run_of(method, seed) for method in ("SAM", "same", "other") for seed in range(3)]
    planted = {"other": {("late", "train"): -0.03, ("late", "validation"): 0.02}}
    rng = np.random.default_rng(1)
    covered, decided = [], []
    for _ in range(200):
        found = comparisons(study_of(runs), runs, curves_of(runs, planted, rng))
        nothing = found[found["variant"] == "same"]
        decided += (nothing["verdict"] != "undecided").tolist()
        late = found[(found["variant"] == "other") & (found["phase"] == "late")].iloc[0]
        covered += [
            late["train_low"] <= -0.03 <= late["train_high"],
            late["validation_low"] <= 0.02 <= late["validation_high"],
        ]
    assert 0.92 < np.mean(covered) < 0.98
    assert np.mean(decided) < 0.02


def test_seeds_are_paired() -> None:
    """The seeds differ by far more than the methods, which pairs do not see; seeds of one method alone do not count."""
    runs = [run_of("SAM", seed) for seed in range(4)] + [run_of("useful", seed) for seed in (3, 1, 2, 7)]
    curves = curves_of(runs, PLANTED, np.random.default_rng(0), noise=1e-4)
    late = comparisons(study_of(runs), runs, curves).set_index("phase").loc["late"]
    assert late["seeds"] == 3
    assert late["train_high"] - late["train_low"] < 0.01
    assert late["verdict"] == "useful pattern"


def test_phases_average_their_share_of_the_epochs() -> None:
    curves = pd.DataFrame({"run": "r", "variant": "v", "seed": 0, "epoch": range(1, 11), "x": np.arange(10.0)})
    for share, early, late in (0.25, 0.5, 8.5), (0.01, 0, 9), (0.5, 2, 7):
        assert phase_means(curves, share, late=False)["x"].item() == early
        assert phase_means(curves, share, late=True)["x"].item() == late


def test_what_the_notes_say_stands_beside_the_verdict_where_they_say_it() -> None:
    methods = {f"SAME {k}": same(k) for k in (1, 2, 3, 4)}
    methods["less"] = {"class_path": "lightning_same.SAME", "init_args": {"ckpt": 1, "condition": 0.5}}
    methods["two"] = {"class_path": "SAME", "init_args": {"ckpt": [1, 3]}}
    methods["by default"] = {"class_path": "lightning_same.SAME"}
    runs = [run_of(method, seed, sam=sam) for method, sam in {"SAM": None, **methods}.items() for seed in range(3)]
    planted = {"SAME 2": PLANTED["noisy"], "SAME 3": PLANTED["useful"]}
    found = comparisons(study_of(runs), runs, curves_of(runs, planted, np.random.default_rng(0), noise=0.002))
    said = {(row["variant"], row["phase"]): (row["notes_say"], row["agrees"]) for _, row in found.iterrows()}
    assert said["SAME 1", "early"] == said["by default", "early"] == ("useful pattern", "open")
    assert said["SAME 2", "early"] == ("noisy fitting", "yes")
    assert said["SAME 2", "late"] == ("useful pattern", "open")
    assert said["SAME 3", "late"] == ("underfitting", "no")
    assert said["SAME 4", "late"] == ("useful pattern", "open")
    assert said["less", "early"] == said["two", "early"] == ("", "")
    others = comparisons(study_of(runs, reference="two"), runs, curves_of(runs, {}, np.random.default_rng(0)))
    assert set(others["notes_say"]) == {""}


def test_variants_are_compared_at_equal_settings() -> None:
    key, other = "sam.init_args.rho", "sam.init_args.condition"
    runs = [
        run_of(method, seed, settings)
        for seed in range(2)
        for method, settings in (
            ("SGD", {}),
            ("SAM", {key: 0.1}),
            ("SAM", {key: 0.2}),
            ("SAME", {key: 0.1, other: 2}),
            ("SAME", {key: 0.2, other: 3}),
        )
    ]
    found = comparisons(study_of(runs), runs, curves_of(runs, {}, np.random.default_rng(0)))
    assert list(dict.fromkeys(zip(found["variant"], found["reference"], strict=True))) == [
        ("SGD", "SAM (rho 0.1)"),
        ("SGD", "SAM (rho 0.2)"),
        ("SAME (rho 0.1, condition 2)", "SAM (rho 0.1)"),
        ("SAME (rho 0.2, condition 3)", "SAM (rho 0.2)"),
    ]
