"""What paired differences say: intervals, equivalence, a correction for many tests, and how many seeds it takes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

LEVEL = 0.95

POWER = 0.8
"""With which the seeds that are asked for shall decide."""

MOST_SEEDS = 1000
"""Beyond which no number of seeds is worked out."""

PHASES = "early", "late"


class Interval(NamedTuple):
    """The mean of a difference and its confidence interval; NaN where there is none."""

    mean: float
    low: float
    high: float


class Differences:
    """One difference per paired seed, independent of each other, and what they show.

    Args:
        values: the differences. Those that are NaN do not count.
        delta: the largest difference that counts as none, above 0.
    """

    def __init__(self, values: Sequence[float], delta: float) -> None:
        given = np.asarray(values, dtype=float)
        self.values = given[~np.isnan(given)]
        self.delta = delta

    @property
    def seeds(self) -> int:
        """Their number."""
        return len(self.values)

    @cached_property
    def spread(self) -> float:
        """Their standard deviation; NaN below two of them, and where all are equal.

        Equal differences are a sign of runs that do not differ, or of an accuracy that has few values; they tell
        nothing of how the next seed would differ.
        """
        if self.seeds < 2:
            return np.nan
        std = float(self.values.std(ddof=1))
        return std if std > 1e-12 * max(1.0, float(np.abs(self.values).max())) else np.nan

    def interval(self, level: float = LEVEL) -> Interval:
        """Student's t interval of the mean, that holds the truth in a share ``level`` of studies."""
        if self.seeds == 0:
            return Interval(np.nan, np.nan, np.nan)
        mean = float(self.values.mean())
        if np.isnan(self.spread):
            return Interval(mean, np.nan, np.nan)
        half = float(special.stdtrit(self.seeds - 1, (1 + level) / 2)) * self._error
        return Interval(mean, mean - half, mean + half)

    @property
    def _error(self) -> float:
        return self.spread / math.sqrt(self.seeds)

    def p(self, statement: str) -> float:
        """The p-value of a statement about the true difference; NaN where there is no interval.

        Args:
            statement: ``"greater"`` or ``"less"`` than zero, two-sided; ``"similar"``, within ``delta`` of zero, by two
                one-sided tests; ``"apart"``, further than ``delta`` from zero, two-sided.
        """
        if np.isnan(self.spread):
            return np.nan
        mean, error, freedom = float(self.values.mean()), self._error, self.seeds - 1
        if statement == "similar":
            return float(special.stdtr(freedom, (abs(mean) - self.delta) / error))
        if statement == "apart":
            return min(1.0, 2 * float(special.stdtr(freedom, (self.delta - abs(mean)) / error)))
        towards = mean if statement == "greater" else -mean
        return min(1.0, 2 * float(special.stdtr(freedom, -towards / error)))

    @cached_property
    def word(self) -> str:
        """What they show: ``greater``, ``less`` or ``similar``, in this order, or nothing: ``open``.

        The first two if the 95% interval is beyond zero, the third if the 90% interval is within ``delta``.
        """
        for word in "greater", "less", "similar":
            if self.p(word) < 1 - LEVEL:
                return word
        return "open"

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would decide, where these do not: whether they differ by ``delta``, or not at all."""
        if np.isnan(self.spread):
            return None
        return max(seeds_for_difference(self.spread, self.delta), seeds_for_equivalence(self.spread, self.delta))


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values corrected for their number by Holm's method; NaN are none of them."""
    values = np.asarray(p, dtype=float)
    adjusted = np.full(len(values), np.nan)
    order = [int(i) for i in np.argsort(values) if not np.isnan(values[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(values[i])))
        adjusted[i] = largest
    return adjusted


def seeds_for_difference(spread: float, difference: float, power: float = POWER) -> int:
    """How many paired seeds show a difference by Student's two-sided test at 5%.

    Args:
        spread: standard deviation of the differences between paired seeds.
        difference: the true difference.
        power: the share of studies in which it shall be shown.

    Returns:
        The number, at most `MOST_SEEDS`.
    """

    def shown(n: int) -> float:
        critical = stats.t.ppf((1 + LEVEL) / 2, n - 1)
        return float(stats.nct.sf(critical, n - 1, abs(difference) / spread * np.sqrt(n)))

    return _fewest(shown, power)


def seeds_for_equivalence(spread: float, delta: float, power: float = POWER) -> int:
    """How many paired seeds show that there is no difference beyond ``delta``, where there is none at all.

    Args:
        spread: standard deviation of the differences between paired seeds.
        delta: the largest difference that counts as none.
        power: the share of studies in which it shall be shown.

    Returns:
        The number, at most `MOST_SEEDS`.
    """
    quantiles = (np.arange(400) + 0.5) / 400

    def shown(n: int) -> float:
        stds = spread * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
        room = (delta - stats.t.ppf(LEVEL, n - 1) * stds / np.sqrt(n)) * np.sqrt(n) / spread
        return float(np.mean(np.clip(2 * stats.norm.cdf(room) - 1, 0, None)))

    return _fewest(shown, power)


def _fewest(shown: Callable[[int], float], power: float) -> int:
    low, high = 1, 2
    while high < MOST_SEEDS and shown(high) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) >= power else (middle, high)
    return min(high, MOST_SEEDS)


def phase_means(curves: pd.DataFrame, share: float, late: bool, cut: int = 0) -> pd.DataFrame:
    """Each metric's mean over the first or last share of each run's epochs, at least one.

    Args:
        curves: a row for each run and epoch.
        share: of the epochs.
        late: the last ones.
        cut: epochs to leave out at the beginning, though they count for the share.

    Returns:
        One row per run, with the index (variant, seed).
    """
    kept = _phase(curves, share, late)
    return kept[kept["epoch"] > cut].groupby(["variant", "seed"]).mean(numeric_only=True)


def phase_slopes(curves: pd.DataFrame, share: float, late: bool) -> pd.DataFrame:
    """How much each metric increases per epoch over a phase: the slope of the least-squares line.

    Returns:
        One row per run, with the index (variant, seed).
    """
    kept = _phase(curves, share, late)
    key = [kept["variant"], kept["seed"]]
    numbers = kept.select_dtypes("number").drop(columns=["seed"], errors="ignore")
    numbers = numbers.sub(numbers.groupby(key).transform("mean"))
    epoch = numbers["epoch"]
    return numbers.mul(epoch, axis=0).groupby(key).sum(min_count=2).div(epoch.pow(2).groupby(key).sum(), axis=0)


def _phase(curves: pd.DataFrame, share: float, late: bool) -> pd.DataFrame:
    number = curves.groupby("run")["epoch"].rank(method="first", ascending=not late)
    count = curves.groupby("run")["epoch"].transform("count")
    return curves[number <= np.maximum(1, np.round(share * count))]


def by_seed(means: pd.DataFrame, metric: str) -> dict[str, dict[int, float]]:
    """A metric of each variant and seed, where it is known.

    Args:
        means: one row per run, with the index (variant, seed).
        metric: a column of it, or not.
    """
    found: dict[str, dict[int, float]] = {}
    if metric in means:
        values = means[metric]
        for (variant, seed), value in zip(values.index.to_list(), values.to_list(), strict=True):
            if not pd.isna(value):
                found.setdefault(variant, {})[seed] = float(value)
    return found


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """The differences between two variants, one for each seed that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
