"""Reports on modules that log little: the report is made after all training, and must not end in an error then."""

from pathlib import Path

import pytest
from support.ray_jobs import leave
from support.studies import write_study

from lightning_same.experiments.study import main
from lightning_same.experiments.study.plan import PLAN, RUNS, Study

HEADS = ["val/accuracy", "val/accuracy,val/loss", "train/loss", "val/accuracy,train_eval/noisy_accuracy", "mine"]


@pytest.mark.parametrize("head", HEADS)
def test_a_sweep_over_the_radius_is_reported_whatever_is_logged(head: str, tmp_path: Path) -> None:
    sweep = {"sam.init_args.rho": [0.1, 0.2, 0.4]}
    methods = {"SGD": {"sam": None, "sweep": dict.fromkeys(sweep)}, "SAM": {"sam": {"class_path": "SAM"}}}
    methods["SAME 1"] = {"sam": {"class_path": "SAME"}}
    study = Study.read(Path(write_study(tmp_path, methods=methods, sweep=sweep)))
    results = tmp_path / "results"
    values = ",".join("0.5" for _ in head.split(","))
    for run in study.runs:
        leave(run, results / RUNS, f"epoch,step,{head}\n" + "".join(f"{n},{n},{values}\n" for n in range(4)))
    (results / PLAN).write_text(study.dump())
    main(["report", str(results)])
    assert "14 of 14 runs are finished" in (results / "report.md").read_text()
