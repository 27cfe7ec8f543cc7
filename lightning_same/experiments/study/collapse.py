"""Runs whose network has died or diverged: shown and counted, but in no interval."""

import math
from collections.abc import Sequence

import pandas as pd

from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.statistics import by_seed, phase_means

MOST_REST = 0.5
"""Above this share of elements with g = s = 0, or in no checkpoint for another reason, a network counts as dead."""


def collapsed(runs: Sequence[Run], curves: pd.DataFrame, late: float) -> dict[str, str]:
    """The runs that have collapsed by the late phase, by name, and why.

    Args:
        runs: finished runs.
        curves: a row for each run and epoch.
        late: the last share of the epochs.

    Returns:
        For each of them ``rest 84%``, ``training loss 2.41 > ln 10`` or ``training loss nan``. A network that gives
        every class the same probability has a loss of ln K, with K classes; what is not logged is not judged.
    """
    means = phase_means(curves, late, late=True)
    rests = by_seed(means, "ckpt_fraction/rest")
    metric = next((name for name in ("train_eval/loss", "train/loss") if name in curves), "")
    losses, known = by_seed(means, metric), by_seed(means, "epoch")
    found = {}
    for run in runs:
        if run.seed not in known.get(run.variant, {}):
            continue
        rest = rests.get(run.variant, {}).get(run.seed, 0.0)
        loss = losses.get(run.variant, {}).get(run.seed, math.nan)
        classes = _classes(run)
        if rest > MOST_REST:
            found[run.name] = f"rest {rest:.0%}"
        elif classes is not None and loss > math.log(classes):
            found[run.name] = f"training loss {loss:.2f} > ln {classes}"
        elif metric and math.isnan(loss):
            found[run.name] = "training loss nan"
    return found


def _classes(run: Run) -> int | None:
    model = run.config.get("model")
    arguments = model.get("init_args") if isinstance(model, dict) else None
    classes = arguments.get("num_classes") if isinstance(arguments, dict) else None
    return classes if isinstance(classes, int) and classes > 1 else None
