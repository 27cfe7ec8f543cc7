"""What the finished runs have measured, as two tables."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.identity import short_names, text
from lightning_same.experiments.study.outcome import read_metrics, read_outcome
from lightning_same.experiments.study.plan import METRICS, Run
from lightning_same.experiments.study.schema import Outcome

OWN = ("run", "method", "variant", "seed", "best_epoch", "noise_rate", "seconds_per_epoch", "gap")
TESTED = re.compile("(last|best)/test/")
"""Names of columns that a metric of the user's must not have."""


class Results(NamedTuple):
    """The finished runs of a study.

    Attributes:
        runs: one row per run: ``run``, ``method``, ``variant``, ``seed``, what was tested (``last/test/accuracy``,
            ``best/test/accuracy``, ...), ``best_epoch``, ``noise_rate``, ``seconds_per_epoch``.
        settings: for each run, the swept options under the shortest names that tell them apart: numbers as they are,
            all else as text, NaN where the run's method has no such setting.
        curves: one row per run and epoch: ``run``, ``method``, ``variant``, ``seed``, ``epoch`` from 1, and every
            metric that the run has logged; the mean over the epoch where there is more than one value.
        made_with: devices, threads, commits and versions of the runs; one line each.
        notes: what a reader has to know of the runs, such as that they ran on different devices; one sentence each.
    """

    runs: pd.DataFrame
    settings: pd.DataFrame
    curves: pd.DataFrame
    notes: tuple[str, ...] = ()
    made_with: tuple[str, ...] = ()


def read_results(runs: Sequence[Run], directory: Path) -> Results:
    """Read the finished runs.

    Args:
        runs: those that are finished.
        directory: the directory of all runs.

    Raises:
        StudyError: if a file of a finished run is missing or broken; names it.
    """
    rows, settings, curves, outcomes = [], [], [], []
    names = short_names(dict.fromkeys(name for run in runs for name in run.settings))
    for run in runs:
        place = directory / run.name
        try:
            outcome = read_outcome(place)
            curve = epochs(pd.read_csv(io.BytesIO(read_metrics(place, outcome))))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise StudyError(
                f"Run {run.name!r} counts as finished, but cannot be read: {error}. Remove {place} and train it again."
            ) from error
        tests = {f"{which}/{name}": value for which, test in outcome.test.items() for name, value in test.items()}
        kept = {name: getattr(outcome, name) for name in ("best_epoch", "noise_rate", "seconds_per_epoch")}
        key = {"run": run.name, "method": run.method, "variant": run.variant, "seed": run.seed}
        rows.append({**key, **tests, **kept})
        settings.append({names[name]: _cell(value) for name, value in run.settings.items()})
        curves.append(pd.concat([pd.DataFrame([key] * len(curve)), curve], axis="columns"))
        outcomes.append(outcome)
    frames = pd.DataFrame(rows), pd.DataFrame(settings), pd.concat(curves, ignore_index=True)
    notes = (*_notes(outcomes), *_short(runs, outcomes, curves))
    return Results(*frames, notes=notes, made_with=tuple(_made_with(outcomes)))


def _cell(value: Any) -> float | int | str:
    return value if type(value) in (int, float) and value == value else text(value)


def _made_with(outcomes: Sequence[Outcome]) -> list[str]:
    """On what the runs were trained, as far as it is known."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.versions)
    kinds: Mapping[str, list[str | None]] = {
        "Device": [outcome.device for outcome in outcomes],
        "Threads of a run": [None if outcome.threads is None else str(outcome.threads) for outcome in outcomes],
        "Commit": [outcome.commit for outcome in outcomes],
        "Versions": [", ".join(f"{name} {outcome.versions.get(name, '?')}" for name in names) for outcome in outcomes],
    }
    known = {kind: [value for value in dict.fromkeys(values) if value] for kind, values in kinds.items()}
    return [f"{kind}: {'; or '.join(values)}." for kind, values in known.items() if values]


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    """In what the runs differ beside their configurations, and what is not known of them."""
    asked: Mapping[str, list[str | None]] = {
        "device": [outcome.device for outcome in outcomes],
        "threads": [None if outcome.threads is None else str(outcome.threads) for outcome in outcomes],
        "commit": [outcome.commit for outcome in outcomes],
        **{
            f"version of {name}": [outcome.versions.get(name) for outcome in outcomes]
            for name in dict.fromkeys(name for outcome in outcomes for name in outcome.versions)
        },
    }
    notes = []
    for what, values in asked.items():
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        if len(counts) > 1:
            listed = ", ".join(f"{value or 'not known'} ({count})" for value, count in counts.items())
            notes.append(f"The runs differ in {what}: {listed}.")
    old = sum(outcome.files is None for outcome in outcomes)
    if old:
        notes.append(
            f"{old} of {len(outcomes)} runs were ended by an earlier version, which kept no checksum of {METRICS}: that"
            " it is whole cannot be known."
        )
    return notes


def _short(runs: Sequence[Run], outcomes: Sequence[Outcome], curves: Sequence[pd.DataFrame]) -> list[str]:
    """Which runs have fewer epochs than were planned, where no checksum says that these are all."""
    found = [
        f"{run.name} has {int(curve['epoch'].max())} of {run.epochs} epochs"
        for run, outcome, curve in zip(runs, outcomes, curves, strict=True)
        if outcome.files is None and run.epochs is not None and curve["epoch"].max() < run.epochs
    ]
    return [f"Cut off or stopped early: {', '.join(found)}."] if found else []


def epochs(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per epoch of a CSV logger's file, in which each row holds what was logged at one moment.

    What was logged within an epoch, at its own steps, comes before the row that ends it and is averaged.
    """
    if "epoch" not in metrics:
        raise ValueError(f"{METRICS} has no column 'epoch'")
    # A module's own values name their epoch; a callback's that go to the logger directly do not, and neither does the
    # row of the learning rate, which is written before the first step of its epoch.
    epoch = pd.to_numeric(metrics["epoch"]).bfill()
    columns = metrics.drop(columns=["epoch", "step"], errors="ignore").select_dtypes("number")
    columns = columns.rename(columns=lambda name: f"logged/{name}" if name in OWN or TESTED.match(name) else name)
    values = columns.groupby(epoch).mean().dropna(axis="columns", how="all").reset_index()
    values["epoch"] = values["epoch"].astype(int) + 1
    return values
