"""Studies whose numbers are planted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.report import write_report

EPOCHS = 20


PHASE = 0.25  # five epochs


def run_of(method: str, seed: int, settings: dict[str, Any] | None = None, sam: Any = None) -> Run:
    name = "_".join([method, *(f"{key}={value}" for key, value in (settings or {}).items()), str(seed)])
    if method == "SAM":
        sam = {"class_path": "SAM"}
    return Run(name.replace(" ", "-"), method, settings or {}, seed, {"sam": sam})


def study_of(runs: list[Run], **options: Any) -> Study:
    planned = {"name": "planted", "description": "", "reference": "SAM", "early": PHASE, "late": PHASE, "threads": 1}
    return Study(**(planned | options), runs=runs)


def same(ckpt: int) -> dict[str, Any]:
    return {"class_path": "SAME", "init_args": {"ckpt": ckpt, "condition": 2.0}}


def write_runs(folder: Path, runs: list[Run], level: Callable[[Run], float], monitors: bool = True) -> None:
    """Finished runs, whose validation accuracy begins at a level and increases by 0.01 per epoch."""
    for number, run in enumerate(runs):
        place = folder / "runs" / run.name
        place.mkdir(parents=True)
        at = np.arange(EPOCHS)
        rows = {
            "epoch": at,
            "step": 10 * at + 9,
            "val/accuracy": level(run) + 0.01 * at,
            "val/loss": 1 - 0.01 * at,
            "train_eval/accuracy": 0.2 + 0.02 * at,
            "train_eval/clean_accuracy": 0.3 + 0.02 * at,
            "train_eval/noisy_accuracy": 0.1 + 0.02 * at,
            "train_eval/loss": 2 - 0.05 * at,
        }
        if monitors:
            rows |= {f"ckpt_fraction/{name}": 0.2 for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")}
            rows |= {"sharpness/top_eigenvalue": 5.0 + number, "grad_norm/base": 1 / (1 + at)}
        pd.DataFrame(rows).to_csv(place / "metrics.csv", index=False)
        tested = {"test/accuracy": 0.5 + 0.01 * run.seed, "test/loss": 1.25}
        outcome = {"test": {"last": tested, "best": tested}, "best_epoch": 3, "noise_rate": 0.4}
        outcome |= {"seconds_per_epoch": 1.5, "digest": run.digest}
        (place / "done.json").write_text(json.dumps(outcome))


def report_on(folder: Path, runs: list[Run], monitors: bool = True, **options: Any) -> str:
    """The report, in Markdown, on runs in which every method is 0.05 above SAM."""
    write_runs(folder, runs, lambda run: 0.4 + 0.05 * (run.method != "SAM") + 0.01 * run.seed, monitors)
    write_report(study_of(runs, **options), runs, folder)
    return (folder / "report.md").read_text()
