"""What the differences between methods say: intervals over paired seeds, and a verdict by a written rule."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lightning_same.experiments.study.plan import Run, Study

LEVEL = 0.95

PHASES = "early", "late"

TRAIN, VALIDATION = "train_eval/accuracy", "val/accuracy"

COMPARED = {
    "train": TRAIN,
    "validation": VALIDATION,
    "clean": "train_eval/clean_accuracy",
    "memorised": "train_eval/noisy_accuracy",
}
"""What is compared in each phase, under its name in the tables."""

RULE = """\
The notes that started this project state two hypotheses about the accuracy of a method beside SAM's. *Noisy fitting*:
the training accuracy increases rapidly, whereas the validation accuracy increases slowly. *Useful pattern*: the
training accuracy increases slowly, whereas the validation accuracy increases quickly. Training accuracy counts the
labels given, wrong ones included; validation accuracy counts true labels. For each phase and method, with both
differences to the reference method averaged over the epochs of the phase:

| | validation higher | validation lower |
|---|---|---|
| training lower | useful pattern | underfitting |
| training higher | useful pattern | noisy fitting |

*Higher* and *lower* mean that the 95% interval of the difference lies above or below zero. Where either interval
includes zero the verdict is *undecided*: that no difference was seen is no proof that there is none. That both being
higher is a useful pattern, and both being lower underfitting, is how the notes read their own later stage."""

WHY_T = """\
The intervals are Student's t over the differences of paired seeds (equal seed: equal initial weights, order of the
batches and wrong labels). A bootstrap over so few seeds promises more than it keeps: in simulated studies with normal
differences, the 95% intervals of the percentile and of the BCa bootstrap held the truth in 72 to 74% of the studies
with 3 seeds, in 84% with 5 and in 90 to 91% with 10; the studentized bootstrap is infinitely wide with 3. Student's
held it in 94 to 96%. Every row is its own comparison; no correction is made for their number."""

NOTES_SAY = {
    (1, "early"): "useful pattern",
    (1, "late"): "useful pattern",
    (2, "early"): "noisy fitting",
    (2, "late"): "useful pattern",
    (3, "early"): "useful pattern",
    (3, "late"): "underfitting",
    (4, "early"): "useful pattern",
    (4, "late"): "useful pattern",
}
"""What the first notes found when each checkpoint was amplified, without label noise."""


class Interval(NamedTuple):
    """The mean of a difference and its confidence interval; NaN where there are too few seeds for one."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies above or below zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of a mean.

    Args:
        differences: one per paired seed, independent of each other.
        level: the share of studies in which the interval shall hold the truth.

    Returns:
        The mean with its interval, which is NaN below two differences.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def verdict(train: Interval, validation: Interval) -> str:
    """The verdict of `RULE`."""
    return {
        (-1, 1): "useful pattern",
        (1, 1): "useful pattern",
        (1, -1): "noisy fitting",
        (-1, -1): "underfitting",
    }.get((train.sign, validation.sign), "undecided")


def phase_means(curves: pd.DataFrame, share: float, late: bool) -> pd.DataFrame:
    """Each metric's mean over the first or last share of each run's epochs, at least one.

    Returns:
        One row per run, with the index (variant, seed).
    """
    number = curves.groupby("run")["epoch"].rank(method="first", ascending=not late)
    count = curves.groupby("run")["epoch"].transform("count")
    kept = curves[number <= np.maximum(1, np.round(share * count))]
    return kept.groupby(["variant", "seed"]).mean(numeric_only=True)


def comparisons(study: Study, done: Sequence[Run], curves: pd.DataFrame) -> pd.DataFrame:
    """Every variant against the reference with the same settings, in both phases.

    Settings that the reference does not have are no hindrance: it is compared with all values of them.

    Returns:
        One row per variant, reference and phase: ``variant``, ``reference``, ``phase``, ``seeds``; for each of
        `COMPARED` that the runs have logged the mean and the ends of the interval (``train``, ``train_low``,
        ``train_high``, ...); ``verdict``, ``notes_say`` and ``agrees``.
    """
    shown = {name: metric for name, metric in COMPARED.items() if metric in curves}
    means = {phase: phase_means(curves, getattr(study, phase), late=phase == "late") for phase in PHASES}
    rows = []
    for run, reference in pairs(study.reference, done):
        for phase in PHASES:
            ours, theirs = means[phase].loc[run.variant], means[phase].loc[reference.variant]
            seeds = ours.index.intersection(theirs.index)
            row: dict[str, Any] = {"variant": run.variant, "reference": reference.variant, "phase": phase}
            row["seeds"] = len(seeds)
            found = {}
            for name, metric in shown.items():
                difference = (ours.loc[seeds, metric] - theirs.loc[seeds, metric]).dropna()
                found[name] = interval(difference.tolist())
                row |= {name: found[name].mean, f"{name}_low": found[name].low, f"{name}_high": found[name].high}
            nothing = interval([])
            row["verdict"] = verdict(found.get("train", nothing), found.get("validation", nothing))
            # The notes compare with SAM itself.
            ckpt = amplified(run.config) if _rule(reference.config) == "SAM" else 0
            row["notes_say"] = NOTES_SAY.get((ckpt, phase), "")
            row["agrees"] = _agrees(row["verdict"], row["notes_say"])
            rows.append(row)
    return pd.DataFrame(rows)


def pairs(reference: str, done: Sequence[Run]) -> list[tuple[Run, Run]]:
    """A run of each variant beside a run of each variant of the reference that it is compared with."""
    variants = {run.variant: run for run in reversed(done)}
    ordered = [variants[name] for name in dict.fromkeys(run.variant for run in done)]
    return [
        (run, other)
        for run in ordered
        for other in ordered
        if other.method == reference != run.method and _alike(run.settings, other.settings)
    ]


def amplified(config: Mapping[str, Any]) -> int:
    """The one checkpoint that a run amplifies, which is what the notes have judged; 0 if it does something else."""
    if _rule(config) != "SAME":
        return 0
    arguments = config["sam"].get("init_args") or {}
    ckpt = arguments.get("ckpt", 1)
    return ckpt if isinstance(ckpt, int) and arguments.get("condition", 2.0) > 1 else 0


def _rule(config: Mapping[str, Any]) -> str:
    sam = config.get("sam")
    return str(sam.get("class_path")).rpartition(".")[2] if isinstance(sam, Mapping) else ""


def _alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


def _agrees(found: str, said: str) -> str:
    if not said:
        return ""
    return "open" if found == "undecided" else "yes" if found == said else "no"
