"""What the finished runs have measured, as two tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lightning_same.experiments.study.plan import MARKER, METRICS, Run, StudyError


class Results(NamedTuple):
    """The finished runs of a study.

    Attributes:
        runs: one row per run: ``run``, ``method``, ``variant``, ``seed``, what was tested (``last/test/accuracy``,
            ``best/test/accuracy``, ...), ``best_epoch``, ``noise_rate``, ``seconds_per_epoch``.
        settings: for each run, the swept options under their short names.
        curves: one row per run and epoch: ``run``, ``method``, ``variant``, ``seed``, ``epoch`` from 1, and every
            metric that the run has logged; the mean over the epoch where there is more than one value.
    """

    runs: pd.DataFrame
    settings: pd.DataFrame
    curves: pd.DataFrame


def read_results(runs: Sequence[Run], directory: Path) -> Results:
    """Read the finished runs.

    Args:
        runs: those that are finished.
        directory: the directory of all runs.

    Raises:
        StudyError: if a file of a finished run is missing or broken; names it.
    """
    rows, settings, curves = [], [], []
    for run in runs:
        place = directory / run.name
        try:
            outcome = json.loads((place / MARKER).read_text())
            curve = epochs(pd.read_csv(place / METRICS))
        except (OSError, ValueError, KeyError) as error:
            raise StudyError(
                f"Run {run.name!r} counts as finished, but cannot be read: {error}. Remove {place} and train it again."
            ) from error
        tests = {f"{which}/{name}": value for which, test in outcome["test"].items() for name, value in test.items()}
        kept = {name: outcome[name] for name in ("best_epoch", "noise_rate", "seconds_per_epoch")}
        key = {"run": run.name, "method": run.method, "variant": run.variant, "seed": run.seed}
        rows.append({**key, **tests, **kept})
        settings.append({name.split(".")[-1]: value for name, value in run.settings.items()})
        curves.append(pd.concat([pd.DataFrame([key] * len(curve)), curve], axis="columns"))
    return Results(pd.DataFrame(rows), pd.DataFrame(settings), pd.concat(curves, ignore_index=True))


def epochs(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per epoch of a CSV logger's file, in which each row holds what was logged at one moment.

    What was logged within an epoch, at its own steps, comes before the row that ends it and is averaged.
    """
    if "epoch" not in metrics:
        raise ValueError(f"{METRICS} has no column 'epoch'")
    # A module's own values name their epoch; a callback's that go to the logger directly do not, and neither does the
    # row of the learning rate, which is written before the first step of its epoch.
    epoch = metrics["epoch"].bfill()
    values = metrics.drop(columns=["epoch", "step"], errors="ignore").groupby(epoch).mean()
    values = values.dropna(axis="columns", how="all").reset_index()
    values["epoch"] = values["epoch"].astype(int) + 1
    return values
