"""The study's runs: as one fit alone, and through kills and faults."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import yaml
from support.studies import MARKER, content, gone, markers, said, wait_for, wait_until, with_fault, write_study

from lightning_same.cli.fit import SAMCLI
from lightning_same.experiments.study import main
from lightning_same.experiments.study.plan import Study
from lightning_same.experiments.study.run import finished, perform


def more_finished_than(results: Path, number: int) -> bool:
    return (results / "runs").exists() and len(markers(results)) > number


def test_a_study_leaves_its_runs_and_its_report(undisturbed: Path) -> None:
    names = {"SAM_seed=0", "SAM_seed=1", "SAME-1_seed=0", "SAME-1_seed=1"}
    assert markers(undisturbed).keys() == names
    files = {path.name for path in (undisturbed / "runs" / "SAM_seed=0").iterdir()}
    assert files == {"fit.yaml", "config.yaml", "hparams.yaml", "metrics.csv", MARKER}
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert not list(undisturbed.rglob("*.part")) + list(undisturbed.rglob("*.log")) + list(undisturbed.rglob("*.ckpt"))
    outcome = json.loads((undisturbed / "runs" / "SAM_seed=0" / MARKER).read_text())
    assert outcome["noise_rate"] == 0.4
    assert set(outcome["test"]["last"]) == set(outcome["test"]["best"]) == {"test/accuracy", "test/loss"}


@pytest.mark.parametrize("config", ["fit.yaml", "config.yaml"])
def test_a_run_is_an_ordinary_fit_of_its_saved_config(undisturbed: Path, config: str, tmp_path: Path) -> None:
    """A worker had trained another run before this one."""
    run = undisturbed / "runs" / "SAME-1_seed=1"
    torch.manual_seed(99)
    SAMCLI(args=["fit", "--config", str(run / config), "--trainer.logger.init_args.save_dir", str(tmp_path)])
    assert (tmp_path / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_a_run_of_another_configuration_is_not_finished(undisturbed: Path) -> None:
    study = Study.load(undisturbed / "study.json")
    run = study.runs[0]
    assert finished(run, undisturbed / "runs")
    other = dataclasses.replace(run, config=run.config | {"seed_everything": 9})
    assert not finished(other, undisturbed / "runs")
    assert not finished(dataclasses.replace(run, name="nowhere"), undisturbed / "runs")


def test_checkpoint_files_that_the_user_keeps_elsewhere_stay(tmp_path: Path) -> None:
    keep = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "kept")}}
    config = write_study(tmp_path, methods={"SAM": {"sam": None, "trainer.callbacks": [keep]}}, seeds=1)
    (run,) = Study.read(Path(config)).runs
    perform(run, tmp_path / "results" / "runs")
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".ckpt"]
    assert finished(run, tmp_path / "results" / "runs")


def test_seeds_pair_the_methods(undisturbed: Path) -> None:
    """Equal seeds start from equal weights and see equal labels; other seeds do not."""
    configs = {path.parent.name: yaml.safe_load(path.read_text()) for path in undisturbed.glob("runs/*/fit.yaml")}
    for name, config in configs.items():
        seed = int(name[-1])
        assert config["seed_everything"] == config["data"]["init_args"]["noise_seed"] == seed
    rest = [
        {key: value for key, value in configs[f"{method}_seed=0"].items() if key not in ("sam", "trainer")}
        for method in ("SAM", "SAME-1")
    ]
    assert rest[0] == rest[1]


def test_killed_at_any_moment_it_goes_on(
    study: str, undisturbed: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    half = results / "runs" / "SAM_seed=1"
    half.mkdir(parents=True)
    (results / "study.json").write_text((undisturbed / "study.json").read_text())
    (half / "metrics.csv").write_text("epoch,step\n0,3\n")
    (half / f".{MARKER}.7.part").write_text('{"digest"')
    for name in "report.md", "tables/final.csv", "figures/curve.svg":
        part = (results / name).with_name(f".{Path(name).name}.7.part")
        part.parent.mkdir(exist_ok=True)
        part.write_text("half")
    draw = random.Random(0)
    for number in 1, 3:
        process = start(results, "--config", study)
        wait_for(partial(more_finished_than, results, number - 1), process)
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        process.join()
        kept = markers(results)
        assert len(kept) >= number
        process = start(results, "--config", study, "--dry-run")
        process.join()
        assert said(results).count("done  ") == len(kept)
    process = start(results, "--config", study)
    process.join()
    assert process.exitcode == 0, said(results)
    assert markers(results).items() >= kept.items()
    assert content(results) == content(undisturbed)


def test_orphans_end_with_their_parent(study: str, start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = start(results, "--config", study)
    log = results / "runs" / "SAM_seed=0.log"
    wait_for(log.exists, process)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    wait_until(lambda: gone(int(worker)))


@pytest.mark.parametrize("fault", ["Fail", "Die"])
def test_a_failed_run_is_named_and_stops_no_other(
    fault: str, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    methods = {"bad": with_fault(fault), "SAM": {"sam": {"class_path": "SAM"}, "data.init_args.num_workers": 1}}
    config = write_study(tmp_path, methods=methods, seeds=1)
    results = tmp_path / "results"
    process = start(results, "--config", config)
    process.join()
    assert process.exitcode == 1
    assert markers(results).keys() == {"SAM_seed=0"}
    why = {
        "Fail": r"RuntimeError: this run fails \(see .*bad_seed=0\.log\)",
        "Die": "its process died with exit code -9",
    }
    assert re.search(rf"1 of 2 runs failed.*\n +bad_seed=0: {why[fault]}", said(results)), said(results)
    if fault == "Fail":
        assert "Traceback" in (results / "runs" / "bad_seed=0.log").read_text()
    report = (results / "report.md").read_text()
    assert "1 of 2 runs are finished" in report
    assert "`bad_seed=0`" in report


def test_a_full_disk_stops_it_and_keeps_what_is_finished(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    methods = {"SAM": {"sam": {"class_path": "SAM"}}, "bad": with_fault("FullDisk"), "more": {"sam": None}}
    config = write_study(tmp_path, methods=methods, seeds=1)
    results = tmp_path / "results"
    process = start(results, "--config", config)
    process.join()
    assert process.exitcode == 2
    assert "No space is left on the disk that holds" in said(results)
    assert "Traceback" not in said(results)
    assert markers(results).keys() == {"SAM_seed=0"}


def test_an_interrupted_study_reports_what_is_finished_and_goes_on(
    study: str, undisturbed: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    process = start(results, "--config", study)
    wait_for(lambda: len(markers(results)) >= 2, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert "The same command goes on" in said(results)
    assert re.search(r"[23] of 4 runs are finished", (results / "report.md").read_text())
    process = start(results, "--config", study, "--jobs", "2")
    process.join()
    assert content(results) == content(undisturbed)


def test_commands_for_a_scheduler_make_the_same_report(
    study: str, undisturbed: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    shutil.rmtree(results / "runs" / "SAM_seed=1")
    for name in "report.md", "report.html":
        (results / name).unlink()
    process = start(results, "--config", study, "--print-commands")
    process.join()
    (command,) = [line for line in said(results).splitlines() if line.startswith("lightning-same study ")]
    assert command.split()[2:] == ["--config", study, "--results", str(results), "--run", "SAM_seed=1"]
    process = start(results, "--config", study, "--run", "SAM_seed=1")
    process.join()
    assert process.exitcode == 0
    assert not (results / "report.md").exists()
    main(["report", str(results)])
    assert content(results) == content(undisturbed)


def test_more_seeds_or_methods_are_the_same_study(tmp_path: Path) -> None:
    study = Study.read(Path(write_study(tmp_path / "a")))
    fewer = Study.read(Path(write_study(tmp_path / "b", seeds=1)))
    assert study.extends(fewer) is None
    assert fewer.extends(study) == "it has a run 'SAM_seed=1' that this one has not"
    assert Study.read(Path(write_study(tmp_path / "c", description="Other words."))).extends(study) is None
