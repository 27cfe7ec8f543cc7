"""What `CheckpointEffectMonitor` has logged: whose gradient lies in a checkpoint, and whom a step along it helps."""

from collections.abc import Sequence
from typing import Any

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
        with interval and word (greater, less, open) after Holm's correction for all rows.
    """
    if "ckpt_effect/ckpt1/clean" not in curves:
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    p: list[float] = []
    words: list[tuple[int, str, str]] = []
    for run in first_runs(done):
        for phase, means in phases(study, curves).items():
            for k in CKPTS:
                row: dict[str, Any] = {"variant": run.variant, "phase": phase, "ckpt": k}
                known = {name: by_seed(means, f"ckpt_effect/ckpt{k}/{name}").get(run.variant, {}) for name in LOSSES}
                for name in LOSSES:
                    row |= _with_interval(name, Differences(list(known[name].values()), NEGLIGIBLE))
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
    table = pd.DataFrame(rows)
    first = ["variant", "phase", "ckpt", "seeds"]
    return table[[*first, *(name for name in table if name not in first)]]


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
                found = Differences(paired(known["clean"], known["noisy"]), NEGLIGIBLE)
                row |= _with_interval("difference", found)
                row["difference_is"] = found.word if found.word in ("greater", "less") else "open"
                rows.append(row)
                decided = row["difference_is"] != "open"
                p.append(found.p(found.word) if decided else 1.0 if found.seeds > 1 else float("nan"))
    for row, value in zip(rows, holm(p), strict=True):
        if not value < 1 - LEVEL:
            row["difference_is"] = "open"
    return pd.DataFrame(rows)


def _with_interval(name: str, found: Differences) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found.interval(), strict=True))
