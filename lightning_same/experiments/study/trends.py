"""What changes with an option: the notes' paragraph on condition and radius, and CustomSAME's choices taken apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lightning_same.experiments.study.claims import TRAINING, VALIDATION
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.statistics import LEVEL, Differences, by_seed, holm
from lightning_same.experiments.study.variants import (
    Gains,
    amplified,
    arguments_of,
    first_runs,
    gains_of,
    is_sam,
    rho_of,
    rule_of,
)


class Trend(NamedTuple):
    """A metric that is followed over an option.

    Attributes:
        name: in the table.
        metric: as it is logged.
        log: whether its logarithm to base 2 is followed, for what is never below 0.
    """

    name: str
    metric: str
    log: bool


TRENDS = (
    Trend("training accuracy", TRAINING, False),
    Trend("validation accuracy", VALIDATION, False),
    Trend("norm of the gradient", "grad_norm/base", True),
    Trend("top eigenvalue", "sharpness/top_eigenvalue", True),
)

NOTES_ON_CONDITION = {"training accuracy": "rises", "norm of the gradient": "falls", "top eigenvalue": "falls"}
"""What the notes say of a higher condition on checkpoint 1: flatter, more training accuracy, smaller gradient norm."""

NOTES_ON_RADIUS = {"training accuracy": "falls", "norm of the gradient": "falls"}
"""What they say of a larger radius: a smaller gradient norm too, but a very low training accuracy."""

CHOICES = {1: "raise", 2: "keep", 3: "lower", 4: "raise"}
"""CustomSAME's four choices."""


def trends(study: Study, done: Sequence[Run], late: pd.DataFrame) -> pd.DataFrame:
    """How metrics of the late phase change as an option doubles: the least-squares slope over its logarithm, per seed.

    Args:
        study: the study.
        done: the finished runs that count.
        late: of `phase_means`, in the late phase.

    Returns:
        One row for each path and metric: ``over`` (``condition`` or ``rho``), ``path``, ``values``, ``metric``,
        ``seeds``, ``slope`` with its interval per doubling, ``is`` (rises, falls or open), ``notes``, ``claim``, and
        ``p`` after Holm's correction. Slopes of norms and eigenvalues are of their logarithm to base 2.
    """
    rows, p = [], []
    for over, path, runs, notes in [*_conditions(done), *_radii(study, done)]:
        at = {run.variant: float(np.log2(value)) for value, run in runs}
        for trend in TRENDS:
            if trend.metric not in late:
                continue
            found = Differences(_slopes(by_seed(late, trend.metric), at, trend.log), 1.0)
            mean, low, high = found.interval()
            word = {"greater": "rises", "less": "falls"}.get(found.word, "open")
            rows.append(
                {
                    "over": over,
                    "path": path,
                    "values": ", ".join(f"{value:g}" for value, _ in runs),
                    "metric": trend.name,
                    "seeds": found.seeds,
                    "slope": mean,
                    "slope_low": low,
                    "slope_high": high,
                    "is": word,
                    "notes": notes.get(trend.name, "") if study.claims == "notes" else "",
                }
            )
            p.append(np.nan if np.isnan(low) else found.p(found.word) if word != "open" else 1.0)
    table = pd.DataFrame(rows)
    if rows:
        table["p"] = holm(p)
        sure = table["p"] < 1 - LEVEL
        agrees = np.where(table["is"] == table["notes"], "confirmed", "refuted")
        table["claim"] = np.where(table["notes"] == "", "", np.where(sure, agrees, "open"))
    return table


def _slopes(known: Mapping[str, Mapping[int, float]], at: Mapping[str, float], log: bool) -> list[float]:
    """The least-squares slope over ``at`` for each seed that has all variants."""
    x = np.array(list(at.values()))
    x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    found = []
    for seed in sorted(set.intersection(*(set(known.get(variant, {})) for variant in at))):
        values = np.array([known[variant][seed] for variant in at])
        found.append(float(x @ (np.log2(values) if log else values)))
    return found


Path = tuple[str, str, list[tuple[float, Run]], dict[str, str]]


def _conditions(done: Sequence[Run]) -> list[Path]:
    """SAME on one checkpoint over its condition, at each radius; SAM is condition 1."""
    groups: dict[tuple[int, float], dict[float, Run]] = {}
    runs = first_runs(done)
    for run in runs:
        arguments = arguments_of(run.config)
        rho, ckpt = rho_of(run.config), arguments.get("ckpt", 1)
        if rule_of(run.config) == "SAME" and isinstance(ckpt, int) and rho is not None:
            groups.setdefault((ckpt, rho), {})[float(arguments.get("condition", 2.0))] = run
    paths: list[Path] = []
    for (ckpt, rho), group in sorted(groups.items()):
        sam = [run for run in runs if rule_of(run.config) == "SAM" and rho_of(run.config) == rho]
        values = sorted({**({1.0: sam[0]} if sam else {}), **group}.items())
        if len(values) > 2:
            paths.append(("condition", f"SAME {ckpt}, rho {rho:g}", values, NOTES_ON_CONDITION if ckpt == 1 else {}))
    return paths


def _radii(study: Study, done: Sequence[Run]) -> list[Path]:
    own = [run for run in first_runs(done) if run.method == study.reference and rho_of(run.config)]
    values = sorted({rho_of(run.config) or 0.0: run for run in own}.items())
    return [("rho", study.reference, values, NOTES_ON_RADIUS)] if len(values) > 2 else []


def factors(study: Study, done: Sequence[Run], means: pd.DataFrame, phase: str) -> pd.DataFrame:
    """What one gain does, averaged over all pairs of variants that differ in it alone.

    In a factorial study these are its main effects; elsewhere they are single comparisons.

    Args:
        study: the study.
        done: the finished runs that count.
        means: of `phase_means`.
        phase: its name.

    Returns:
        One row for each checkpoint, gain and radius: ``ckpt``, ``gain`` (from 1), ``rho``, ``pairs``, ``seeds``, the
        differences of training and validation accuracy with intervals and words, ``choice``, what CustomSAME does with
        the checkpoint, and ``supported``: whether the effect on validation speaks for that (yes, no or open), after
        Holm's correction.
    """
    groups: dict[tuple[int, float, float], list[tuple[Run, Run]]] = {}
    runs = [(run, gains, rho_of(run.config)) for run in first_runs(done) if (gains := gains_of(run.config))]
    for run, gains, rho in runs:
        for other, others, radius in runs:
            changed = _changed(others, gains)
            if changed is not None and rho == radius and rho is not None:
                groups.setdefault((*changed, rho), []).append((run, other))
    rows, p = [], []
    for (ckpt, gain, rho), couples in sorted(groups.items(), key=lambda item: item[0]):
        row: dict[str, Any] = {"phase": phase, "ckpt": ckpt, "gain": gain, "rho": rho, "pairs": len(couples)}
        for name, metric in ("training", TRAINING), ("validation", VALIDATION):
            found = Differences(_effects(means, couples, metric), study.delta)
            mean, low, high = found.interval()
            row |= {"seeds": found.seeds, name: mean, f"{name}_low": low, f"{name}_high": high}
            row[f"{name}_is"] = found.word
        row["choice"] = CHOICES[ckpt]
        rows.append(row)
        p.append(np.nan if np.isnan(low) else found.p(found.word) if found.word != "open" else 1.0)
    table = pd.DataFrame(rows)
    if rows:
        table["p"] = holm(p)
        table["supported"] = [_supported(row) for _, row in table.iterrows()]
    return table


def _changed(before: Gains, after: Gains) -> tuple[int, float] | None:
    """The checkpoint whose gain is 1 before and another after, if all others have the same."""
    different = [k for k in range(4) if before[k] != after[k]]
    if len(different) != 1 or before[different[0]] != 1:
        return None
    return different[0] + 1, after[different[0]]


def _effects(means: pd.DataFrame, couples: Sequence[tuple[Run, Run]], metric: str) -> list[float]:
    """The mean difference over the couples, for each seed that all of them have."""
    known = by_seed(means, metric)
    seeds = set.intersection(*(set(known.get(run.variant, {})) for couple in couples for run in couple))
    return [
        sum(known[run.variant][seed] - known[other.variant][seed] for run, other in couples) / len(couples)
        for seed in sorted(seeds)
    ]


def _supported(row: pd.Series) -> str:
    if not row["p"] < 1 - LEVEL:
        return "open"
    raised, word = row["gain"] > 1, row["validation_is"]
    if row["choice"] == "keep":
        return "no" if word == "greater" else "yes"
    wanted = (row["choice"] == "raise") == raised
    if word == "similar":
        return "no"
    return "yes" if (word == "greater") == wanted else "no"


def sharpness_at_equal_loss(study: Study, done: Sequence[Run], curves: pd.DataFrame) -> pd.DataFrame:
    """The top eigenvalue beside the reference's where both have the same training loss.

    Sharpness falls by itself as the loss goes to 0, so that the end of training compares unequal things. Within each
    seed the logarithm of the eigenvalue is interpolated over the training loss along either run, at the lowest loss
    that both have reached.

    Returns:
        One row per variant: ``variant``, ``reference``, ``seeds``, ``loss``, the mean loss at which they are compared,
        and ``ratio``, the geometric mean of the ratio of eigenvalues, with its interval and ``is``.
    """
    needed = {"sharpness/top_eigenvalue", "train_eval/loss"}
    if not needed <= set(curves):
        return pd.DataFrame()
    measured = curves.dropna(subset=sorted(needed))
    measured = measured[measured["sharpness/top_eigenvalue"] > 0]
    paths: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    for _, group in measured.groupby(["variant", "seed"]):
        if len(group) > 1:
            loss, top = (group[name].to_numpy(dtype=float) for name in ("train_eval/loss", "sharpness/top_eigenvalue"))
            paths[group["variant"].to_list()[0], group["seed"].to_list()[0]] = loss, np.log(top)
    rows = []
    sams = [run for run in first_runs(done) if is_sam(run.config)]
    for run in first_runs(done):
        for other in sams:
            if run.variant == other.variant or rho_of(run.config) != rho_of(other.config) or not amplified(run.config):
                continue
            losses, ratios = [], []
            for seed in sorted({seed for _, seed in paths}):
                if (run.variant, seed) in paths and (other.variant, seed) in paths:
                    ours, theirs = paths[run.variant, seed], paths[other.variant, seed]
                    level = max(ours[0].min(), theirs[0].min())
                    if level <= min(ours[0].max(), theirs[0].max()):
                        losses.append(level)
                        ratios.append(_at(ours, level) - _at(theirs, level))
            found = Differences(ratios, 1e-9)
            ratio = {
                name: float(np.exp(value))
                for name, value in zip(("ratio", "ratio_low", "ratio_high"), found.interval(), strict=True)
            }
            rows.append(
                {"variant": run.variant, "reference": other.variant, "seeds": found.seeds}
                | {"loss": float(np.mean(losses)) if losses else np.nan}
                | ratio
                | {"is": {"greater": "sharper", "less": "flatter"}.get(found.word, "open")}
            )
    return pd.DataFrame(rows)


def _at(path: tuple[np.ndarray, np.ndarray], loss: float) -> float:
    order = np.argsort(path[0])
    return float(np.interp(loss, path[0][order], path[1][order]))
