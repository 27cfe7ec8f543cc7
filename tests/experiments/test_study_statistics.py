"""Intervals that cover, equivalence, Holm's correction, and how many seeds it takes."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.stats

from lightning_same.experiments.study.statistics import (
    Differences,
    holm,
    paired,
    phase_means,
    phase_slopes,
    seeds_for_difference,
    seeds_for_equivalence,
)


def test_the_interval_is_students() -> None:
    """Against the table of t: 4.303 for 2 degrees of freedom, 2.776 for 4; 2.920 and 2.132 for the 90% interval."""
    found = Differences([1.0, 2.0, 3.0], 1.0)
    assert found.interval().mean == 2
    assert found.interval().high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert 2 - found.interval(0.9).low == pytest.approx(2.920 / math.sqrt(3), rel=1e-3)
    values = [0.1, -0.4, 0.3, 0.9, 0.2]
    half = 2.776 * float(np.std(values, ddof=1)) / math.sqrt(5)
    assert Differences(values, 1.0).interval()[1:] == pytest.approx((0.22 - half, 0.22 + half), rel=1e-3)


@pytest.mark.parametrize("values", [[], [3.0], [0.1, 0.1, 0.1], [0.1 + 0.2, 0.3, 0.3]])
def test_without_spread_there_is_no_interval_and_nothing_is_shown(values: list[float]) -> None:
    found = Differences(values, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Numpy's, of a standard deviation of one number.
        assert math.isnan(found.interval().low)
    assert math.isnan(found.interval().high)
    assert found.word == "open"
    assert found.seeds_needed is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_at_the_nominal_rate(seeds: int) -> None:
    """Of 2000 means of normal differences; the standard deviation of the rate is 0.5%."""
    rng = np.random.default_rng(seeds)
    truth = 0.03
    intervals = [Differences(values, 1.0).interval() for values in rng.normal(truth, 0.02, (2000, seeds)).tolist()]
    assert abs(np.mean([low <= truth <= high for _, low, high in intervals]) - 0.95) < 0.015


@pytest.mark.parametrize("mean", [-0.06, -0.015, -0.004, 0.0, 0.004, 0.015, 0.06])
@pytest.mark.parametrize("spread", [0.003, 0.012, 0.03])
def test_words_are_those_of_the_two_intervals(mean: float, spread: float) -> None:
    """Less or greater: the 95% interval is beyond zero. Else similar: the 90% interval is within delta."""
    found = Differences([mean - spread, mean - spread / 2, mean, mean + spread / 2, mean + spread], 0.02)
    std = spread * math.sqrt(2.5 / 4)
    wide, narrow = (t * std / math.sqrt(5) for t in (2.776, 2.132))
    expected = (
        "greater" if mean > wide else "less" if -mean > wide else "similar" if abs(mean) + narrow < 0.02 else "open"
    )
    assert found.word == expected


@pytest.mark.parametrize("truth", [0.0, 0.019999])
def test_nothing_is_called_different_and_too_much_is_called_similar_in_5_percent_at_most(truth: float) -> None:
    """At zero, where there is no difference, and at delta, where it is no longer similar; the rate varies by 0.5%."""
    rng = np.random.default_rng(0)
    draws = rng.normal(truth, 0.01, (2000, 6))
    if truth:
        assert np.mean([Differences(values, 0.02).p("similar") < 0.05 for values in draws]) < 0.065
        assert np.mean([Differences(values, 0.02).p("apart") < 0.05 for values in draws]) < 0.065
    else:
        assert np.mean([Differences(values, 0.02).word in ("less", "greater") for values in draws]) < 0.065


def test_holms_correction_is_that_of_his_paper() -> None:
    """By hand: the smallest of four times 4, the next times 3, and none below the one before it."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, np.nan, 0.9]), [1.0, np.nan, 1.0])


@pytest.mark.parametrize(
    ("spread", "by_t", "by_equivalence"), [(0.5, 5, 3), (0.84, 8, 4), (1.15, 13, 5), (2.1, 37, 12), (2.5, 52, 16)]
)
def test_seeds_for_one_point_are_those_of_the_tables_of_power(spread: float, by_t: int, by_equivalence: int) -> None:
    assert seeds_for_difference(spread, 1.0) == by_t
    assert abs(seeds_for_equivalence(spread, 2.0) - by_equivalence) <= 1  # the table rounds up


@pytest.mark.parametrize(("delta", "power"), [(1.1, 0.3), (1.5, 0.3), (1.5, 0.5)])
def test_fewer_seeds_show_equivalence_in_fewer_studies(delta: float, power: float) -> None:
    rng = np.random.default_rng(0)

    def shown(seeds: int) -> float:
        draws = rng.normal(size=(50000, seeds))
        half = scipy.stats.t.ppf(0.95, seeds - 1) * draws.std(axis=1, ddof=1) / math.sqrt(seeds)
        return float(np.mean(np.abs(draws.mean(axis=1)) + half < delta))

    seeds = seeds_for_equivalence(1.0, delta, power)
    assert shown(seeds - 1) < power < shown(seeds)


@pytest.mark.parametrize("truth", [0.0, 0.02])
def test_as_many_seeds_as_are_asked_for_decide_in_four_studies_of_five(truth: float) -> None:
    rng = np.random.default_rng(0)
    seeds = (seeds_for_difference if truth else seeds_for_equivalence)(0.02, 0.02)
    words = [Differences(values, 0.02).word for values in rng.normal(truth, 0.02, (1000, seeds))]
    decided = np.mean([word in (("greater",) if truth else ("similar", "less", "greater")) for word in words])
    assert 0.76 < decided < 0.88


@pytest.mark.parametrize("mean", [-0.05, -0.02, -0.003, 0.0, 0.003, 0.02, 0.05])
def test_p_values_are_scipys_and_none_is_above_1(mean: float) -> None:
    for seeds in (2, 3, 7):
        values = np.random.default_rng(seeds).normal(mean, 0.01, seeds)
        found = Differences(values.tolist(), 0.02)

        def one_sided(than: float, side: str, values: np.ndarray = values) -> float:
            return float(scipy.stats.ttest_1samp(values, than, alternative=side).pvalue)

        expected = {
            "greater": 2 * one_sided(0, "greater"),
            "less": 2 * one_sided(0, "less"),
            "similar": max(one_sided(-0.02, "greater"), one_sided(0.02, "less")),
            "apart": 2 * min(one_sided(0.02, "greater"), one_sided(-0.02, "less")),
        }
        for word, p in expected.items():
            assert found.p(word) == pytest.approx(min(1.0, p), rel=1e-9)


@pytest.mark.parametrize("spread", [0.4, 0.7, 1.0, 1.6])
def test_seeds_for_equivalence_are_those_of_the_exact_power(spread: float) -> None:
    """The mean of the differences is normal, their variance distributed as chi-squared: one integral for each n."""

    def power(n: int) -> float:
        chi2, t = scipy.stats.chi2(n - 1), scipy.stats.t.ppf(0.95, n - 1)

        def shown(u: float) -> float:
            std = spread * math.sqrt(u / (n - 1))
            room = (1 - t * std / math.sqrt(n)) * math.sqrt(n) / spread
            return float(chi2.pdf(u)) * max(0.0, 2 * float(scipy.stats.norm.cdf(room)) - 1)

        last = n * (n - 1) / (t * spread) ** 2  # Beyond this the interval is wider than what counts as none.
        return float(scipy.integrate.quad(shown, 0, last)[0])

    n = seeds_for_equivalence(spread, 1.0)
    assert power(n) >= 0.799
    assert power(n - 1) < 0.801


def test_differences_are_of_the_seeds_that_both_have() -> None:
    assert paired({7: 1.0, 1: 5.0, 0: 3.0}, {1: 1.0, 9: 4.0, 0: 2.0}) == [1.0, 4.0]


def test_one_epoch_has_no_slope() -> None:
    curves = pd.DataFrame({"run": "r", "variant": "v", "seed": 0, "epoch": [1, 2], "x": [1.0, np.nan], "y": [1.0, 3.0]})
    slopes = phase_slopes(curves, 1.0, late=False)
    assert math.isnan(slopes["x"].item())
    assert slopes["y"].item() == 2


def test_phases_average_their_share_of_the_epochs() -> None:
    curves = pd.DataFrame({"run": "r", "variant": "v", "seed": 0, "epoch": range(1, 11), "x": np.arange(10.0)})
    for share, early, late in (0.25, 0.5, 8.5), (0.28, 1, 8), (0.01, 0, 9), (0.5, 2, 7):
        assert phase_means(curves, share, late=False)["x"].item() == early
        assert phase_means(curves, share, late=True)["x"].item() == late
    assert phase_means(curves, 0.5, late=False, cut=2)["x"].item() == 3


def test_slopes_are_those_of_the_least_squares_line() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"run": f"{variant} {seed}", "variant": variant, "seed": seed, "epoch": epoch, "x": rng.normal()}
        for variant in "ab"
        for seed in (0, 3)
        for epoch in range(1, 9)
    ]
    curves = pd.DataFrame(rows)
    slopes = phase_slopes(curves, 0.5, late=False)["x"]
    for key, group in curves[curves["epoch"] <= 4].groupby(["variant", "seed"]):
        assert slopes[key] == pytest.approx(np.polyfit(group["epoch"], group["x"], 1)[0])
