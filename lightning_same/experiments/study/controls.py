"""What amplifies a checkpoint beside what amplifies as much of the gradient elsewhere: placebos and equal doses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_same.experiments.study.claims import TRAINING, VALIDATION, differences
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.radius import MEMORISED
from lightning_same.experiments.study.statistics import LEVEL, holm
from lightning_same.experiments.study.variants import amplified, arguments_of, first_runs, gains_of, rho_of, rule_of


def controls(study: Study, done: Sequence[Run], means: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every variant that amplifies one checkpoint beside its controls of the same radius.

    The controls of an amplified checkpoint are `RandomGains` of its size, which amplifies random elements by as much,
    as many or with as large a norm of s. That of a `CheckpointDose` is the same dose on all checkpoints.

    Args:
        study: the study.
        done: the finished runs that count.
        means: for each phase, of `phase_means`.

    Returns:
        One row per variant, control and phase: ``seeds``, the differences of ``training``, ``memorised`` (where it was
        logged) and ``validation`` accuracy with intervals and words, ``p`` of that on validation after Holm's
        correction for all rows, and ``beyond``, what the checkpoint does beyond its control: the word on validation,
        if it holds after the correction, else open.
    """
    rows: list[dict[str, Any]] = []
    p: list[float] = []
    runs = first_runs(done)
    metrics = {"training": TRAINING, "memorised": MEMORISED, "validation": VALIDATION}
    for run in runs:
        for control in runs:
            if not is_control(control.config, run.config):
                continue
            for phase, table in means.items():
                row: dict[str, Any] = {"variant": run.variant, "control": control.variant, "phase": phase}
                for name, metric in metrics.items():
                    if metric in table:
                        found = differences(table, run, control, metric, study.delta)
                        mean, low, high = found.interval()
                        row |= {"seeds": found.seeds, name: mean, f"{name}_low": low, f"{name}_high": high}
                        row[f"{name}_is"] = found.word
                if "validation" in row:
                    shown = row["validation_is"] != "open"
                    p.append(np.nan if np.isnan(found.spread) else found.p(found.word) if shown else 1.0)
                    rows.append(row)
    table = pd.DataFrame(rows)
    if rows:
        table["p"] = holm(p)
        table["beyond"] = np.where(table["p"] < 1 - LEVEL, table["validation_is"], "open")
    return table


def is_control(config: Mapping[str, Any], of: Mapping[str, Any]) -> bool:
    """Whether a rule amplifies as much as another does, but not the checkpoint that the other has chosen."""
    if rho_of(config) is None or rho_of(config) != rho_of(of):
        return False
    given, others = arguments_of(config), arguments_of(of)
    if rule_of(config) == "RandomGains":
        gains, ckpt = gains_of(of), amplified(of)
        if not gains or not ckpt:
            return False
        return bool(given.get("ckpt", 1) == ckpt and given.get("condition", 2.0) == gains[ckpt - 1])
    if rule_of(of) == "CheckpointDose":
        gain = 1 + float(others.get("dose", 0.5))
        return gains_of(config) == (gain, gain, gain, gain)
    return False
