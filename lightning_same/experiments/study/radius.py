"""What a larger or smaller radius explains: every method beside the reference at the radius that memorises as much."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_same.experiments.study.claims import TRAINING, VALIDATION
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.statistics import LEVEL, Differences, by_seed, holm, paired
from lightning_same.experiments.study.variants import alike, first_runs, rho_of

MEMORISED = "train_eval/noisy_accuracy"


def over_radius(study: Study, done: Sequence[Run]) -> dict[str, list[Run]]:
    """The variants of each method that differ in the radius alone, from the smallest to the largest.

    Returns:
        By the method with its other settings; those of two radii or more.
    """
    groups: dict[str, list[Run]] = {}
    for run in first_runs(done):
        others = {name: value for name, value in run.settings.items() if not name.endswith(".rho")}
        if rho_of(run.config) is not None and len(others) < len(run.settings):
            groups.setdefault(_name(run.method, others), []).append(run)
    return {
        name: sorted(runs, key=lambda run: rho_of(run.config) or 0.0) for name, runs in groups.items() if len(runs) > 1
    }


def frontier(study: Study, done: Sequence[Run], late: pd.DataFrame) -> pd.DataFrame:
    """Where each method ends over the radius: means over the seeds in the late phase.

    Returns:
        One row per method and radius: ``method``, ``rho``, ``seeds``, ``memorised`` (where it was logged),
        ``training``, ``validation``. A method of one radius has one row; SGD's is 0. Without a method of several there
        is no row.
    """
    groups = over_radius(study, done)
    if not groups:
        return pd.DataFrame()
    shown = {id(run) for runs in groups.values() for run in runs}
    in_order: dict[str, list[Run]] = {}
    for run in first_runs(done):
        name = _name(run.method, _rest(run.settings))
        if id(run) in shown:
            in_order[name] = groups[name]
        elif rho_of(run.config) is not None:
            in_order[name] = [run]
    rows = []
    metrics = {"memorised": MEMORISED, "training": TRAINING, "validation": VALIDATION}
    values = {name: by_seed(late, metric) for name, metric in metrics.items() if metric in late}
    for method, runs in in_order.items():
        for run in runs:
            row: dict[str, Any] = {"method": method, "rho": rho_of(run.config)}
            for name, known in values.items():
                own = known.get(run.variant, {})
                if own:
                    row |= {"seeds": len(own), name: sum(own.values()) / len(own)}
            if "validation" in row:
                rows.append(row)
    return pd.DataFrame(rows)


def equivalent_radius(study: Study, done: Sequence[Run], late: pd.DataFrame) -> pd.DataFrame:
    """At which radius the reference memorises as much as a variant does, and how their validation differs there.

    Within each seed, the reference's memorised share falls with its radius (made monotone by averaging neighbours that
    are out of order) and is interpolated between the radii that were trained, 0 being the method without a rule. Where
    no label is wrong the training accuracy stands for the memorised share. If the validation is *similar* at the
    equivalent radius, a change of radius explains the variant.

    Args:
        study: the study.
        done: the finished runs that count.
        late: of `phase_means`, in the late phase.

    Returns:
        One row per variant that is not of the reference: ``variant``, ``rho``, ``matched_on``, ``seeds`` with an
        equivalent radius, ``outside``, the seeds where the variant memorises more or less than the reference does at
        any radius, or where that is the same at all of them, to within ``delta``; ``equivalent_rho``, ``validation``
        with its interval and word, ``p`` after Holm's correction, and ``explained``: yes if the difference is shown to
        be within ``delta``, no if it is shown to be beyond zero and not that, else open.
    """
    references = _reference_path(study, done)
    noise = by_seed(late, MEMORISED)
    matched, validation = noise or by_seed(late, TRAINING), by_seed(late, VALIDATION)
    rows, p, words = [], [], []
    ours = {run.variant for _, run in references}
    for run in first_runs(done):
        if run.variant in ours or run.variant not in matched or len(references) < 3:
            continue
        if not all(alike(_rest(run.settings), _rest(other.settings)) for _, other in references):
            continue
        found, matches = _match(run.variant, references, matched, validation, study.delta)
        rows.append(
            {"variant": run.variant, "rho": rho_of(run.config), "matched_on": "memorised" if noise else "training"}
            | matches
        )
        # What is within delta is explained, also if it can be told from zero.
        similar = found.p("similar")
        word = "similar" if similar < 1 - LEVEL else found.word
        words.append({"similar": "yes", "open": "open"}.get(word, "no"))
        p.append(np.nan if np.isnan(found.spread) else 1.0 if word == "open" else found.p(word))
    table = pd.DataFrame(rows)
    if rows:
        table["p"] = holm(p)
        sure = table["p"] < 1 - LEVEL
        table["explained"] = np.where(sure, words, "open")
    return table


def interpolation(study: Study, done: Sequence[Run], late: pd.DataFrame) -> pd.DataFrame:
    """How far the equivalent radius errs by itself: each of the reference's radii, matched with the others.

    Between its neighbours the gap is wider than for any variant, so that this bounds the error of the interpolation.

    Returns:
        One row per radius between the smallest and the largest: ``left_out``, ``seeds``, ``outside``,
        ``equivalent_rho`` and the difference of the validation accuracy with its interval and word.
    """
    path = _reference_path(study, done)
    noise = by_seed(late, MEMORISED)
    matched, validation = noise or by_seed(late, TRAINING), by_seed(late, VALIDATION)
    rows = []
    for rho, run in path[1:-1]:
        others = [(radius, other) for radius, other in path if other is not run]
        if rho > 0 and run.variant in matched and len(others) > 2:
            rows.append({"left_out": rho} | _match(run.variant, others, matched, validation, study.delta)[1])
    return pd.DataFrame(rows)


def _match(
    variant: str,
    path: Sequence[tuple[float, Run]],
    matched: Mapping[str, Mapping[int, float]],
    validation: Mapping[str, Mapping[int, float]],
    delta: float,
) -> tuple[Differences, dict[str, Any]]:
    """A variant's validation beside the reference's at the radius of a path that is its equal, seed by seed."""
    radii, differences, outside = [], [], 0
    for seed, reached in matched[variant].items():
        points = [(rho, other) for rho, other in path if seed in matched.get(other.variant, {})]
        if len(points) < 3:
            continue
        rho = [radius for radius, _ in points]
        level = decreasing([matched[other.variant][seed] for _, other in points])
        # Where all radii do as much, none is the variant's equal.
        if not level[-1] <= reached <= level[0] or level[0] - level[-1] < delta:
            outside += 1
            continue
        there = [validation[other.variant][seed] for _, other in points]
        equal = float(np.interp(reached, level[::-1], rho[::-1]))
        radii.append(equal)
        differences.append(validation[variant][seed] - float(np.interp(equal, rho, there)))
    found = Differences(differences, delta)
    mean, low, high = found.interval()
    return found, {
        "seeds": found.seeds,
        "outside": outside,
        "equivalent_rho": float(np.mean(radii)) if radii else np.nan,
        "validation": mean,
        "validation_low": low,
        "validation_high": high,
        "validation_is": found.word,
    }


def best_radius(study: Study, done: Sequence[Run], late: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """Each method at its best radius beside the reference at its own.

    In each seed the radius is chosen by the validation accuracy of the late phase, and judged on the test images, which
    had no say in it.

    Args:
        study: the study.
        done: the finished runs that count.
        late: of `phase_means`, in the late phase.
        tests: a row per run with ``variant``, ``seed`` and ``last/test/accuracy``.

    Returns:
        One row per method: ``method``, ``seeds``, ``chosen``, the radii with how often they were chosen, ``test``, the
        mean accuracy, and its difference to the reference's with interval and word.
    """
    groups = over_radius(study, done)
    groups |= {run.method: [run] for run in first_runs(done) if rho_of(run.config) == 0 and not run.settings}
    if len(groups) < 2 or "last/test/accuracy" not in tests or VALIDATION not in late:
        return pd.DataFrame()
    score = by_seed(tests.set_index(["variant", "seed"]), "last/test/accuracy")
    validation = by_seed(late, VALIDATION)
    tested: dict[str, dict[int, float]] = {}
    chosen: dict[str, list[float]] = {}
    for method, runs in groups.items():
        for seed in sorted({seed for values in validation.values() for seed in values}):
            own = {run.variant: validation.get(run.variant, {}).get(seed) for run in runs}
            known = {variant: value for variant, value in own.items() if value is not None}
            if known:  # a radius at which the network has collapsed is no choice
                best = max(known, key=lambda variant: known[variant])
                tested.setdefault(method, {})[seed] = score[best][seed]
                chosen.setdefault(method, []).append(next(rho_of(r.config) or 0.0 for r in runs if r.variant == best))
    references = [name for name, runs in groups.items() if runs[0].method == study.reference and name in tested]
    if not references:
        return pd.DataFrame()
    base = tested[references[0]]
    rows, p = [], []
    for method, values in tested.items():
        found = Differences(paired(values, base), study.delta)
        row: dict[str, Any] = {"method": method, "seeds": len(values)}
        radii = chosen[method]
        row["chosen"] = ", ".join(f"{rho:g} ({radii.count(rho)})" for rho in sorted(set(radii)))
        row["test"] = float(np.mean(list(values.values())))
        if method != references[0]:
            mean, low, high = found.interval()
            row |= {"difference": mean, "difference_low": low, "difference_high": high, "difference_is": found.word}
        rows.append(row)
        decided = method != references[0] and found.word != "open"
        p.append(found.p(found.word) if decided else np.nan if method == references[0] else 1.0)
    table = pd.DataFrame(rows)
    table["p"] = holm(p)
    return table


def decreasing(values: Sequence[float]) -> list[float]:
    """The closest values that never increase: neighbours out of order are replaced by their mean."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [value for value, count in blocks for _ in range(count)]


def _reference_path(study: Study, done: Sequence[Run]) -> list[tuple[float, Run]]:
    """The reference's variants by their radius, and before them the method that has none."""
    runs = [(rho, run) for run in first_runs(done) if (rho := rho_of(run.config)) is not None]
    own = [(rho, run) for rho, run in runs if run.method == study.reference]
    plain = [(rho, run) for rho, run in runs if rho == 0 and run.method != study.reference][:1]
    return sorted([*plain, *own], key=lambda pair: pair[0])


def _rest(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.endswith(".rho")}


def _name(method: str, settings: Mapping[str, Any]) -> str:
    others = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in settings.items())
    return f"{method} ({others})" if others else method
