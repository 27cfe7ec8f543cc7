"""The claims of the notes as data, and what a study says of each: confirmed, refuted or open."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.statistics import (
    LEVEL,
    PHASES,
    Differences,
    by_seed,
    holm,
    paired,
    phase_means,
    phase_slopes,
)
from lightning_same.experiments.study.variants import amplified, is_sam, pairs

Expected = tuple[str, str]
"""What training and validation accuracy are said to be beside the reference's: less, similar or greater."""

TRAINING, VALIDATION = "train_eval/accuracy", "val/accuracy"

NOTES: dict[tuple[int, str], Expected] = {
    (1, "early"): ("less", "similar"),
    (1, "late"): ("greater", "greater"),
    (2, "early"): ("greater", "similar"),
    (2, "late"): ("greater", "greater"),
    (3, "early"): ("less", "similar"),
    (3, "late"): ("less", "less"),
    (4, "early"): ("less", "similar"),
    (4, "late"): ("less", "greater"),
}
"""What the notes saw when a checkpoint was amplified: training, and validation accuracy beside SAM's."""

VERDICTS: dict[Expected, str] = {
    ("less", "similar"): "useful pattern",
    ("less", "greater"): "useful pattern",
    ("similar", "greater"): "useful pattern",
    ("greater", "greater"): "useful pattern",
    ("greater", "similar"): "noisy fitting",
    ("greater", "less"): "noisy fitting",
    ("less", "less"): "underfitting",
    ("similar", "less"): "harm",
    ("similar", "similar"): "no effect",
}

COLUMNS = [
    "variant",
    "reference",
    "phase",
    "seeds",
    "training",
    "training_low",
    "training_high",
    "training_is",
    "validation",
    "validation_low",
    "validation_high",
    "validation_is",
    "verdict",
    "notes_training",
    "notes_validation",
    "claim",
]
"""Of ``tables/claims.csv``."""

RULE = """\
Each *observation*, the difference of an accuracy to the reference's within equal seeds, averaged over the epochs of the
phase, is *less* or *greater* if its 95% interval lies beyond zero; else *similar* if its 90% interval lies within
±{delta:.1f} points (two one-sided tests); else *open*. Training accuracy counts the labels given, wrong ones included;
validation accuracy counts true labels. A pair of observations has a verdict:

| training | validation | verdict |
|---|---|---|
| less | similar or greater | useful pattern |
| similar or greater | greater | useful pattern |
| greater | similar or less | noisy fitting |
| less | less | underfitting |
| similar | less | harm |
| similar | similar | no effect |

{claims}Verdicts{and_claims} stand if they hold after Holm's correction for all rows of the table at 5%; else they are
*open*: that no difference was seen is no proof that there is none. The intervals and the words beside them are those of
each row alone."""

CLAIMS_RULE = """\
A claim is such a pair. It is *confirmed* if both observations are shown. It is *refuted* if one of them is shown to be
otherwise: the opposite; a difference within ±{delta:.1f} points where one was claimed, and none in the way that was
claimed; or one beyond ±{delta:.1f} points where *similar* was claimed. A difference that is beyond zero and yet within
±{delta:.1f} points agrees with either claim. """

WHY_T = """\
The intervals are Student's t over the differences of paired seeds (equal seed: equal splits, initial weights, order of
the batches and wrong labels). A bootstrap over so few seeds promises more than it keeps: in simulated studies with
normal differences, the 95% intervals of the percentile and of the BCa bootstrap held the truth in 72 to 74% of the
studies with 3 seeds, in 84% with 5 and in 90 to 91% with 10; the studentized bootstrap is infinitely wide with 3.
Student's held it in 94 to 96%. Where all differences are equal there is no interval."""


def expected_of(study: Study, run: Run, reference: Run, phase: str) -> Expected | None:
    """What is claimed of a variant: by the study's own hypotheses, or by the notes of the checkpoint it amplifies."""
    if study.claims == "notes":
        return NOTES.get((amplified(run.config), phase)) if is_sam(reference.config) else None
    given = study.claims.get(run.method) if isinstance(study.claims, Mapping) else None
    said = given.get(phase) if isinstance(given, Mapping) else None
    return None if said is None else (said[0], said[1])


def claims(study: Study, done: Sequence[Run], means: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every variant against the reference with the same settings, in both phases.

    Args:
        study: the study; its ``delta`` is the largest difference that counts as none.
        done: the finished runs that count.
        means: for each phase, of `phase_means`.

    Returns:
        One row per variant, reference and phase: the columns of `COLUMNS`, and beside them ``p`` and ``claim_p`` after
        Holm's correction.
    """
    rows, row_p, claim_p, outcomes = [], [], [], []
    for run, reference in pairs(study.reference, done):
        for phase in PHASES:
            training, validation = (
                differences(means[phase], run, reference, metric, study.delta) for metric in (TRAINING, VALIDATION)
            )
            expected = expected_of(study, run, reference, phase)
            words = training.word, validation.word
            row: dict[str, Any] = {"variant": run.variant, "reference": reference.variant, "phase": phase}
            row["seeds"] = min(training.seeds, validation.seeds)
            for name, found in ("training", training), ("validation", validation):
                mean, low, high = found.interval()
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_is": found.word}
            row["verdict"] = VERDICTS.get(words, "open")
            row["notes_training"], row["notes_validation"] = expected or ("", "")
            rows.append(row)
            row_p.append(_shown(training, validation, words) if row["verdict"] != "open" else _least(words, rows[-1]))
            outcome, p = judged(training, validation, expected) if expected else ("", np.nan)
            outcomes.append(outcome)
            claim_p.append(p)
    table = pd.DataFrame(rows)
    if rows:
        table["p"], table["claim_p"] = holm(row_p), holm(claim_p)
        table.loc[~(table["p"] < 1 - LEVEL), "verdict"] = "open"
        table["claim"] = [
            outcome if not outcome or p < 1 - LEVEL else "open"
            for outcome, p in zip(outcomes, table["claim_p"], strict=True)
        ]
    return table.reindex(columns=[*COLUMNS, "p", "claim_p"])


def judged(training: Differences, validation: Differences, expected: Expected) -> tuple[str, float]:
    """What the differences speak for, and how strongly.

    Returns:
        ``confirmed`` or ``refuted``, whichever has the smaller p-value, and that; not corrected for other claims.
    """
    both = list(zip((training, validation), expected, strict=True))
    confirmed = max(found.p(word) for found, word in both)
    # Either observation may refute the claim: twice the smaller of two p-values.
    refuted = min(1.0, 2 * min(_otherwise(found, word) for found, word in both))
    if np.isnan(confirmed) or np.isnan(refuted):
        return "open", np.nan
    return ("confirmed", confirmed) if confirmed <= refuted else ("refuted", refuted)


def _otherwise(found: Differences, claimed: str) -> float:
    """The p-value of what contradicts a claimed observation."""
    if claimed == "similar":
        return found.p("apart")
    opposite = found.p("less" if claimed == "greater" else "greater")
    return opposite if found.word == claimed else min(opposite, found.p("similar"))


def _shown(training: Differences, validation: Differences, words: Expected) -> float:
    return max(training.p(words[0]), validation.p(words[1]))


def _least(words: Expected, row: Mapping[str, Any]) -> float:
    """Of a row without a verdict: it counts for the correction, but can be nothing."""
    return np.nan if np.isnan(row["training_low"]) or np.isnan(row["validation_low"]) else 1.0


def seeds_needed(study: Study, done: Sequence[Run], means: Mapping[str, pd.DataFrame]) -> list[float]:
    """For each row of `claims`, how many seeds would decide the observations that are open; NaN if none is."""
    numbers = []
    for run, reference in pairs(study.reference, done):
        for phase in PHASES:
            both = [differences(means[phase], run, reference, name, study.delta) for name in (TRAINING, VALIDATION)]
            needed = [found.seeds_needed for found in both if found.word == "open"]
            numbers.append(max((float(number) for number in needed if number is not None), default=np.nan))
    return numbers


def differences(means: pd.DataFrame, run: Run, reference: Run, metric: str, delta: float) -> Differences:
    """Those of a metric between two variants, one for each seed that both have."""
    values = by_seed(means, metric)
    return Differences(paired(values.get(run.variant, {}), values.get(reference.variant, {})), delta)


def sensitivity(study: Study, done: Sequence[Run], curves: pd.DataFrame, cut: int = 2) -> pd.DataFrame:
    """The early phase in two other ways: without the first epochs, and by how fast the accuracies increase.

    Args:
        study: the study.
        done: the finished runs that count.
        curves: a row for each run and epoch.
        cut: epochs to leave out.

    Returns:
        One row per variant, reference and measure. A slope is in accuracy per epoch, *similar* within ``delta`` over
        the length of the phase, so that it would make no greater difference by its end.
    """
    epochs = 0 if curves.empty else int(curves["epoch"].max())  # none are left where all runs have collapsed
    length = max(1, round(study.early * epochs))
    measures = {"levels": (phase_means(curves, study.early, late=False), study.delta)}
    if length > cut:
        means = phase_means(curves, study.early, late=False, cut=cut)
        measures[f"levels without the first {cut} epochs"] = means, study.delta
    if length > 1:
        measures["increase per epoch"] = phase_slopes(curves, study.early, late=False), study.delta / (length - 1)
    rows = []
    for run, reference in pairs(study.reference, done):
        for measure, (values, delta) in measures.items():
            row: dict[str, Any] = {"variant": run.variant, "reference": reference.variant, "measure": measure}
            words = []
            for name, metric in ("training", TRAINING), ("validation", VALIDATION):
                found = differences(values, run, reference, metric, delta)
                mean, low, high = found.interval()
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_is": found.word}
                words.append(found.word)
                row.setdefault("seeds", found.seeds)
            row["verdict"] = VERDICTS.get((words[0], words[1]), "open")
            rows.append(row)
    return pd.DataFrame(rows)


def rule_text(study: Study) -> str:
    """The rule as the report prints it."""
    has_claims = bool(study.claims)
    return RULE.format(
        delta=100 * study.delta,
        claims=CLAIMS_RULE.format(delta=100 * study.delta) if has_claims else "",
        and_claims=" and claims" if has_claims else "",
    )
