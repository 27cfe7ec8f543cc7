"""The study's runs: as one fit alone, through kills and faults, and refused where they make no sense."""

import dataclasses
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from filelock import FileLock
from study_faults import begin, with_fault, write_study

from lightning_same.cli.fit import SAMCLI
from lightning_same.experiments.study import main
from lightning_same.experiments.study.plan import Study
from lightning_same.experiments.study.run import finished, perform

MARKER = "done.json"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def undisturbed(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the study, by the command as it is."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    main(["--config", study, "--results", str(results)])
    return results


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Start the command in a process that can be killed; importing once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study_faults", "lightning_same.experiments", "lightning_same.experiments.study"])
    started = []

    def begun(results: Path, *arguments: str) -> BaseProcess:
        process = context.Process(target=begin, args=([*arguments, "--results", str(results)], f"{results}.log"))
        process.start()
        started.append(process)
        return process

    yield begun
    for process in started:
        process.kill()


def said(results: Path) -> str:
    return Path(f"{results}.log").read_text()


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    while not condition():
        assert process.is_alive(), "the command ended early"
        time.sleep(0.01)


def markers(results: Path) -> dict[str, tuple[int, int]]:
    """The finished runs, with what tells whether a marker was written again."""
    return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in results.glob(f"runs/*/{MARKER}")}


def more_finished_than(results: Path, number: int) -> bool:
    return (results / "runs").exists() and len(markers(results)) > number


def content(results: Path) -> dict[str, Any]:
    """Every file of the results that is no time, path or lock."""
    found: dict[str, Any] = {}
    for path in sorted(results.rglob("*")):
        name = str(path.relative_to(results))
        if path.is_dir() or path.suffix in (".lock", ".log") or path.name in (".lock", "times.csv", "config.yaml"):
            continue
        text = path.read_text()
        if name.startswith("report"):
            text = re.split(r"## Time|<h2>Time", text)[0]
        elif path.name == MARKER:
            outcome = json.loads(text)
            del outcome["seconds_per_epoch"]
            text = json.dumps(outcome)
        found[name] = re.sub(r"/\S*/results\b", "RESULTS", text)
    return found


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
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


# Refused


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"X": {"sam": {"class_path": "SAMM"}}}, "reference": "X"}, "no rule 'SAMM'. Did you mean SAM?"),
        (
            {"methods": {"SAM": {"sam": {"class_path": "SAM", "init_args": {"radius": 1}}}}},
            "SAM has no argument 'radius'. Its arguments: rho",
        ),
        ({"options": {"data.init_args.noise_rate": 1.0}}, "`noise_rate` must be from 0 to below 1, got 1.0"),
        ({"options": {"data.init_args.noise_rate": -0.2}}, "`noise_rate` must be from 0 to below 1, got -0.2"),
        ({"sweep": {"data.init_args.noise_rate": [0.2, 1.5]}}, "`noise_rate` must be from 0 to below 1, got 1.5"),
        ({"options": {"data.init_args.noise": "symetric"}}, "symetric"),
        ({"reference": "SGD"}, "`reference` must be one of the methods (SAM, SAME 1), got 'SGD'"),
        ({"seeds": 0}, "`seeds` must be a number of seeds or a list of different ones, got 0"),
        ({"seeds": [1, 1]}, "`seeds` must be a number of seeds or a list of different ones, got [1, 1]"),
        ({"sweeps": {}}, "no option `sweeps`. Did you mean `sweep`?"),
        ({"methods": {"SAM": "SAM"}}, "method 'SAM' must have options, such as `sam: {class_path: SAM}`, got 'SAM'"),
        ({"options": ["x"]}, "`options` must be a mapping of full names to values, got ['x']"),
        ({"early": 0.7}, "`early` must be a share above 0, at most 0.5, got 0.7"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml cannot be read: No such file or directory"),
        ({"methods": {}}, "`methods` must name one method or more"),
        ({"methods": {"SAM": None, "S?M": None, "S!M": None}}, "two runs would have the name 'S-M_seed=0'"),
        (
            {
                "options": {
                    "data.class_path": "lightning_same.experiments.CIFAR10Data",
                    "data.init_args": {"noise": "file", "label_file": "x.pt", "data_dir": "/dev/null/x"},
                }
            },
            "the data set is not in '/dev/null/x' and could not be downloaded",
        ),
    ],
)
def test_bad_input_is_refused_before_the_first_run(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_study(tmp_path, **changes)
    assert message in refused(capsys, "--config", config, "--results", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_the_results_of_another_study_are_refused(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(undisturbed)
    for changes, why in (
        ({"name": "other"}, "that is the study 'tiny', this one is 'other'"),
        ({"options": {"trainer.max_epochs": 9}}, "in run 'SAM_seed=0', trainer.max_epochs is 3 there and 9 here"),
        ({"seeds": 1}, "it has a run 'SAM_seed=1' that this one has not"),
    ):
        message = refused(capsys, "--config", write_study(tmp_path, **changes), "--results", str(undisturbed))
        assert "holds the results of another study" in message
        assert why in message
    assert content(undisturbed) == before
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".study.json.7.part").write_text("{")
    main(["--config", write_study(tmp_path), "--results", str(tmp_path / "killed"), "--dry-run"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    message = refused(capsys, "--config", write_study(tmp_path), "--results", str(tmp_path / "photos"))
    assert "is not empty and holds no study" in message
    assert "holds no study" in refused(capsys, "report", str(tmp_path / "photos"))


def test_two_commands_do_not_share_a_directory(
    study: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(undisturbed / ".lock"):
        message = refused(capsys, "--config", study, "--results", str(undisturbed))
    assert "Another command is running the study" in message


def test_a_run_is_trained_by_one_process_at_a_time(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_same.experiments.study.run.PATIENCE", 0)
    main(["--config", study, "--results", str(tmp_path / "fresh"), "--print-commands"])
    runs = tmp_path / "fresh" / "runs"
    runs.mkdir()
    with FileLock(runs / ".SAM_seed=0.lock"):
        message = refused(capsys, "--config", study, "--results", str(tmp_path / "fresh"), "--run", "SAM_seed=0")
    assert "Run 'SAM_seed=0' is being trained by another process" in message


def test_a_run_that_is_not_there_is_named(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--config", study, "--results", str(tmp_path / "r"), "--run", "SGD_seed=0")
    assert "There is no run 'SGD_seed=0' in this study. Its runs: SAM_seed=0, " in message


def test_a_nearly_full_disk_is_refused(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "Only 1.0 MiB are free" in refused(capsys, "--config", study, "--results", str(tmp_path / "r"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the study: --config"),
        (["report"], "`report` needs the results directory"),
        (["--config", "x.yaml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)
