"""What `CheckpointEffectMonitor` has logged: whose gradient lies in a checkpoint, and whom a step along it helps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.statistics import LEVEL, Differences, by_seed, holm, paired, phase_means
from lightning_same.experiments.study.variants import first_runs

LOSSES = "clean", "noisy", "validation"

CKPTS = (1, 2, 3, 4)

NEGLIGIBLE = 1e-12
"""For quantities that have no difference that counts as none: nothing is called similar."""


def phases(study: Study, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The means of the early and the late phase, and of the epochs between them."""
    number = curves.groupby("run")["epoch"].rank(method="first")
    count = curves.groupby("run")["epoch"].transform("count")
    between = curves[(number > (study.early * count).round()) & (number <= count - (study.late * count).round())]
    return {
        "early": phase_means(curves, study.early, late=False),
        "middle": phase_means(between, 1.0, late=False),
        "late": phase_means(curves, study.late, late=True),
    }


def mechanism(study: Study, done: Sequence[Run], curves: pd.DataFrame) -> pd.DataFrame:
    """The effects of a step of length one along each checkpoint, and whose gradient lies in it.

    Args:
        study: the study.
        done: the finished runs that count.
        curves: a row for each run and epoch.

    Returns:
        One row per variant, phase and checkpoint: ``seeds``; the effects on the ``clean`` and the ``noisy`` part of the
        batch's loss and on the ``validation`` loss, means over the seeds of the means over the phase, with intervals;
        ``noisy_share``, the share of s there that comes from noisy samples, with its interval; ``noisy_dominated``, the
        share of elements where their gradient is the larger one; and ``beyond_count`` and ``beyond_norm``: the
        effect on the validation loss beyond that of a random set of elements, as many or with as large a norm of s,
        with interval and word (greater, less, open) after Holm's correction for all rows. ``a_step`` answers the
        notes' question: *learns patterns* if a step there is shown to lower the validation loss, *fits noise* if it
        is shown to lower the noisy samples' loss and to raise the validation loss, *harms* if it is shown to raise the
        validation loss and not that, else open; after Holm's correction for all rows, too.
    """
    if "ckpt_effect/ckpt1/clean" not in curves:
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    p: list[float] = []
    words: list[tuple[int, str, str]] = []
    steps: list[tuple[str, float]] = []
    for run in first_runs(done):
        for phase, means in phases(study, curves).items():
            for k in CKPTS:
                row: dict[str, Any] = {"variant": run.variant, "phase": phase, "ckpt": k}
                known = {name: by_seed(means, f"ckpt_effect/ckpt{k}/{name}").get(run.variant, {}) for name in LOSSES}
                effects = {name: Differences(list(known[name].values()), NEGLIGIBLE) for name in LOSSES}
                for name, effect in effects.items():
                    row |= _with_interval(name, effect)
                steps.append(a_step(effects["noisy"], effects["validation"]))
                row["seeds"] = len(known["clean"])
                share = by_seed(means, f"ckpt_share/ckpt{k}/noisy").get(run.variant, {})
                row |= _with_interval("noisy_share", Differences(list(share.values()), NEGLIGIBLE))
                dominated = by_seed(means, f"ckpt_dominated/ckpt{k}/noisy").get(run.variant, {})
                row["noisy_dominated"] = sum(dominated.values()) / len(dominated) if dominated else float("nan")
                for match in "count", "norm":
                    placebo = by_seed(means, f"ckpt_placebo_{match}/ckpt{k}/validation").get(run.variant, {})
                    found = Differences(paired(known["validation"], placebo), NEGLIGIBLE)
                    row |= _with_interval(f"beyond_{match}", found)
                    word = found.word if found.word in ("greater", "less") else "open"
                    words.append((len(rows), f"beyond_{match}_is", word))
                    p.append(found.p(word) if word != "open" else 1.0 if found.seeds > 1 else float("nan"))
                rows.append(row)
    for (number, column, word), value in zip(words, holm(p), strict=True):
        rows[number][column] = word if value < 1 - LEVEL else "open"
    for row, (word, _), value in zip(rows, steps, holm([value for _, value in steps]), strict=True):
        row["a_step"] = word if value < 1 - LEVEL else "open"
    table = pd.DataFrame(rows)
    first = ["variant", "phase", "ckpt", "seeds"]
    return table[[*first, *(name for name in table if name not in first)]]


def a_step(noisy: Differences, validation: Differences) -> tuple[str, float]:
    """What a step along a checkpoint does, by its effects on the noisy samples' and on the validation loss.

    Returns:
        The word, and its p-value, not corrected for other checkpoints.
    """
    if np.isnan(validation.spread):
        return "open", np.nan
    learns, raises, fits = validation.p("greater"), validation.p("less"), noisy.p("greater")
    if learns < raises:
        return "learns patterns", learns
    # Without noisy samples there is no noise to fit.
    return ("fits noise", max(raises, fits)) if fits < 1 - LEVEL else ("harms", raises)


def amplification(study: Study, done: Sequence[Run], curves: pd.DataFrame) -> pd.DataFrame:
    """How much the second pass amplifies clean and noisy gradients, where either kind dominates.

    The published explanation of SAM's robustness (Luong et al.) is that clean gradients are amplified more where noisy
    ones dominate, so that the elements are weighed down there.

    Returns:
        One row per variant, phase and kind of element (``where``): the ratio of the sums of abs(s) and abs(g) for the
        ``whole`` batch, its ``clean`` and its ``noisy`` samples, and ``difference``, clean minus noisy within a seed,
        with its interval and ``is`` (greater, less, open) after Holm's correction.
    """
    if "ckpt_amplification/noisy_dominated/clean" not in curves:
        return pd.DataFrame()
    rows, p = [], []
    for run in first_runs(done):
        for phase, means in phases(study, curves).items():
            for where in "clean_dominated", "noisy_dominated":
                key = f"ckpt_amplification/{where}"
                known = {name: by_seed(means, f"{key}/{name}").get(run.variant, {}) for name in ("whole", *LOSSES[:2])}
                row: dict[str, Any] = {"variant": run.variant, "phase": phase, "where": where}
                row["seeds"] = len(known["whole"])
                row |= {name: sum(values.values()) / max(1, len(values)) for name, values in known.items()}
                both = paired(known["clean"], known["noisy"]) if any(known["noisy"].values()) else []
                found = Differences(both, NEGLIGIBLE)
                row |= _with_interval("difference", found)
                row["difference_is"] = found.word if found.word in ("greater", "less") else "open"
                rows.append(row)
                decided = row["difference_is"] != "open"
                p.append(found.p(found.word) if decided else 1.0 if found.seeds > 1 else float("nan"))
    for row, value in zip(rows, holm(p), strict=True):
        if not value < 1 - LEVEL:
            row["difference_is"] = "open"
    return pd.DataFrame(rows)


class Prediction(NamedTuple):
    """What an explanation says of what is logged: that the mean of some values is above that of others."""

    says: str
    larger: tuple[str, ...]
    smaller: tuple[str, ...]


AMPLIFIED = "ckpt_amplification"

DOWN_WEIGHTING = (
    Prediction(
        "where noisy gradients dominate, clean ones are amplified more",
        (f"{AMPLIFIED}/noisy_dominated/clean",),
        (f"{AMPLIFIED}/noisy_dominated/noisy",),
    ),
    # What is small by chance is amplified more, whatever it comes from: the first is seen on clean-dominated elements
    # with the roles exchanged. This is what remains of it beyond that.
    Prediction(
        "by more than noisy ones are where clean gradients dominate",
        (f"{AMPLIFIED}/noisy_dominated/clean", f"{AMPLIFIED}/clean_dominated/clean"),
        (f"{AMPLIFIED}/noisy_dominated/noisy", f"{AMPLIFIED}/clean_dominated/noisy"),
    ),
    Prediction(
        "the whole gradient is amplified less where noisy ones dominate than where clean ones do",
        (f"{AMPLIFIED}/clean_dominated/whole",),
        (f"{AMPLIFIED}/noisy_dominated/whole",),
    ),
    Prediction(
        "noisy gradients dominate more elements of checkpoint 2 than of checkpoint 1",
        ("ckpt_dominated/ckpt2/noisy",),
        ("ckpt_dominated/ckpt1/noisy",),
    ),
    Prediction(
        "more of s comes from noisy samples on checkpoint 2 than on checkpoint 1",
        ("ckpt_share/ckpt2/noisy",),
        ("ckpt_share/ckpt1/noisy",),
    ),
)
"""What follows from the published explanation of SAM's robustness to wrong labels, and for SANER, which reduces
checkpoint 2 (Luong et al., arXiv 2411.17132)."""


def explanation(study: Study, done: Sequence[Run], curves: pd.DataFrame) -> pd.DataFrame:
    """The predictions of the published explanation, within seeds.

    Returns:
        One row per variant with noisy samples, prediction and phase: ``larger`` and ``smaller``, the means of the two
        values; their ``difference`` with its interval; and ``holds``: yes if the difference is shown to be above zero,
        no if below, else open, after Holm's correction for all rows.
    """
    rows: list[dict[str, Any]] = []
    p: list[float] = []
    phase_tables = phases(study, curves) if "ckpt_share/ckpt1/noisy" in curves else {}
    for run in first_runs(done) if phase_tables else []:
        shares = by_seed(phase_tables["early"], "ckpt_share/ckpt1/noisy").get(run.variant, {})
        if not any(shares.values()):  # no label is wrong
            continue
        for prediction in DOWN_WEIGHTING:
            for phase, means in phase_tables.items():
                larger, smaller = (_mean_of(means, names, run.variant) for names in prediction[1:])
                found = Differences(paired(larger, smaller), NEGLIGIBLE)
                row: dict[str, Any] = {"variant": run.variant, "prediction": prediction.says, "phase": phase}
                row["seeds"] = found.seeds
                for name, values in ("larger", larger), ("smaller", smaller):
                    row[name] = sum(values.values()) / max(1, len(values))
                row |= _with_interval("difference", found)
                row["holds"] = {"greater": "yes", "less": "no"}.get(found.word, "open")
                rows.append(row)
                p.append(np.nan if np.isnan(found.spread) else found.p(found.word) if row["holds"] != "open" else 1.0)
    for row, value in zip(rows, holm(p), strict=True):
        if not value < 1 - LEVEL:
            row["holds"] = "open"
    return pd.DataFrame(rows)


def _mean_of(means: pd.DataFrame, names: Sequence[str], variant: str) -> dict[int, float]:
    """The mean of several metrics, for each seed that has them all."""
    known = [by_seed(means, name).get(variant, {}) for name in names]
    seeds = set.intersection(*(set(values) for values in known))
    return {seed: sum(values[seed] for values in known) / len(known) for seed in seeds}


def _with_interval(name: str, found: Differences) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found.interval(), strict=True))
