"""Both executors keep one interface; and runs that need processes of their own have them."""

import errno
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from support.fresh import fresh_processes
from support.ray_jobs import Apart, planned, pretend
from support.speed import ended
from support.studies import gone, markers, said, wait_for, wait_until, write_study

from lightning_same.experiments.study import main
from lightning_same.experiments.study.environment import differences, versions
from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.executors import processes
from lightning_same.experiments.study.executors.events import Event
from lightning_same.experiments.study.executors.landing import LANDING, land, pack, remove_landings
from lightning_same.experiments.study.executors.processes import Processes
from lightning_same.experiments.study.executors.ray_worker import Job, look, perform
from lightning_same.experiments.study.outcome import state
from lightning_same.experiments.study.own_process import planned_devices
from lightning_same.experiments.study.plan import Study


def events_of(names: Sequence[str], folder: Path) -> list[Event]:
    """In a process whose workers can be forked: it has trained nothing itself."""
    processes._CONTEXT = multiprocessing.get_context("fork")
    with Processes(2, perform=pretend) as executor:
        assert executor.check(planned(names[0]), folder, 1) == []
        return list(executor.run_all(planned(*names), folder, 1))


def test_processes_yield_what_happens(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, fresh_processes()) as one:
        events = one.submit(events_of, ("a", "fail", "b"), tmp_path).result()
    of = {name: [(e.kind, e.value) for e in events if e.run.name == name] for name in ("a", "fail", "b")}
    assert of["a"] == of["b"] == [("started", ""), ("epoch", 1), ("done", None)]
    why = f"RuntimeError: this run fails (see {tmp_path / 'fail.log'})"
    assert of["fail"] == [("started", ""), ("epoch", 1), ("failed", why)]
    assert [e.run.name for e in events if e.kind == "started"] == ["a", "fail", "b"]


def job(directory: Path, **changes: Any) -> Job:
    options = {"token": None, "threads": 1, "versions": versions(), "cwd": None, "path": (), "perform": pretend}
    return Apart(directory=directory, **{**options, **changes})


def on_a_full_disk(run: Any, directory: Path, threads: int, tell: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_of_another_machine_is_a_failure_of_that_run_alone(tmp_path: Path) -> None:
    """One of the study's own ends the study."""
    (run,) = planned("a")
    there = perform(job(tmp_path, perform=on_a_full_disk), run, lambda epoch: None)
    assert there.kind == "failed"
    assert there.why.startswith(f"No space is left on the disk of {there.node}: OSError: ")
    (tmp_path / "token").write_text("shared")
    options = {**vars(job(tmp_path)), "token": (tmp_path / "token", "shared"), "perform": on_a_full_disk}
    assert perform(Job(**options), run, lambda epoch: None).kind == "full"


def test_a_run_lands_whole_or_not_at_all(tmp_path: Path) -> None:
    (run,) = planned("a")
    answer = perform(job(tmp_path), run, lambda epoch: None)
    assert answer.packed is not None
    for broken in answer.packed[: len(answer.packed) // 2], b"", b"none":
        with pytest.raises(StudyError, match="it has not arrived whole: "):
            land(run, broken, tmp_path)
        assert state(run, tmp_path).kind == "left"
    place = tmp_path / "a"
    place.mkdir()
    (place / "metrics.csv").write_text("half")
    land(run, answer.packed, tmp_path)
    assert state(run, tmp_path).kind == "done"
    inode = (place / "done.json").stat().st_ino
    land(run, answer.packed, tmp_path)  # it is there already
    assert (place / "done.json").stat().st_ino == inode
    (tmp_path / LANDING / "7" / "a").mkdir(parents=True)
    remove_landings(tmp_path)
    assert not (tmp_path / LANDING).exists()


def test_an_archive_that_leads_elsewhere_lands_nowhere(tmp_path: Path) -> None:
    (run,) = planned("a")
    here = tmp_path / "here"
    pretend(run, here, 1, lambda epoch: None)
    (here / "a" / "out").symlink_to("/etc/passwd")
    with pytest.raises(StudyError, match=r"it has not arrived whole: .*out"):
        land(run, pack(run, here, tmp_path), tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_machine_that_differs_performs_nothing(tmp_path: Path) -> None:
    (run,) = planned("a")
    answer = perform(job(tmp_path, versions=versions() | {"lightning": "1"}), run, lambda epoch: None)
    assert answer.kind == "unfit"
    assert f"has lightning {versions()['lightning']} instead of 1" in answer.why
    assert differences(versions() | {"numpy": "1", "python": "3.99"}, versions()) == []  # those may differ
    assert differences({}, {"torch": "2", "lightning": "2", "lightning-same": "0"})[0] == (
        "lightning-same missing instead of 0"
    )


def test_data_that_are_missing_are_told(tmp_path: Path) -> None:
    config = write_study(tmp_path, seeds=1, options={"data.init_args.noise": "file"})
    found = look(job(tmp_path), Study.read(Path(config)).runs[:1])
    assert found.unlike == []
    assert found.wrong.startswith("Method 'SAM': ")


@pytest.mark.parametrize(
    ("trainer", "devices"),
    [
        ({"devices": 4}, 4),
        ({"devices": "2"}, 2),
        ({"devices": [0, 3, 5]}, 3),
        ({"devices": "0,1"}, 2),
        ({"devices": "3,"}, 1),
        ({"devices": "auto"}, None),
        ({"devices": -1, "accelerator": "gpu"}, None),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({}, None),
        (None, None),
    ],
)
def test_the_devices_of_a_run_are_read_as_lightning_reads_them(trainer: Any, devices: int | None) -> None:
    assert planned_devices({"trainer": trainer}) == devices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retries", "1"], "--retries belongs to --ray"),
        (["--ray", "auto", "--retries", "-1"], "--retries must be from 0 to 10000, got -1"),
        (["--ray", "auto", "--gpus-per-run", "1.5"], "--gpus-per-run must be a share of 1 or a whole number"),
        (["--ray", "auto", "--cpus-per-run", "nan"], "--cpus-per-run must be from 0 to 10000, got nan"),
        (["--ray", "auto", "--max-concurrent", "0"], "--max-concurrent must be from 1 to 10000, got 0"),
        (["--ray", "--jobs", "2"], "--ray stands for itself: without --jobs"),
        (["--ray", "--run", "SAM_seed=0"], "--ray stands for itself: without --jobs, --run"),
        (["--ray", "--print-commands"], "--ray stands for itself: without --jobs, --run and --print-commands"),
    ],
)
def test_options_of_ray_that_make_no_sense(
    arguments: list[str], message: str, study: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--config", study, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


class Told:
    """Stands for an executor, and keeps what it is told."""

    def __init__(self, *words: Any, **options: Any) -> None:
        raise StudyError(f"told {words} {options}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], {}),
        (["--retries", "0"], {"retries": 0}),
        (["--retries", "5", "--max-concurrent", "3"], {"retries": 5, "max_concurrent": 3}),
        (["--cpus-per-run", "0", "--gpus-per-run", "0.5"], {"cpus": 0.0, "gpus": 0.5}),
    ],
)
def test_what_is_asked_of_ray_is_told_the_executor(
    arguments: list[str], told: dict[str, Any], study: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("lightning_same.experiments.study.command.check_runs", lambda study: None)
    monkeypatch.setattr("lightning_same.experiments.study.executors.ray_cluster.RayCluster", Told)
    monkeypatch.setattr("lightning_same.experiments.study.command.Processes", Told)
    defaults = {"cpus": None, "gpus": None, "max_concurrent": None, "retries": 2}
    for words, expected in (
        (["--ray", "there:1", *arguments], f"told ('there:1',) {defaults | told}"),
        (["--ray", *arguments], f"told ('local',) {defaults | told}"),
        *([([], "told (1,) {}"), (["--jobs", "3"], "told (3,) {}")] if not arguments else []),
    ):
        with pytest.raises(SystemExit):
            main(["--config", study, "--dry-run", *words])
        assert expected in capsys.readouterr().err


DDP = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.init_args.batch_size": 10}


@pytest.mark.slow
def test_a_run_on_two_devices_has_a_process_of_its_own(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """Lightning starts that process's command again; it would have been the study's."""
    methods = {"SAM": {"sam": {"class_path": "SAM"}}, "bad": {"sam": None, "trainer.callbacks": [FAIL]}}
    config = write_study(tmp_path, seeds=1, methods=methods, options=DDP)
    results = tmp_path / "results"
    process = start(results, "--config", config)
    assert ended(process, 240)
    assert process.exitcode == 1, said(results)
    assert markers(results).keys() == {"SAM_seed=0"}
    assert "bad_seed=0: RuntimeError: this run fails (see " in said(results)
    assert "Traceback" in (results / "runs" / "bad_seed=0.log").read_text()
    assert not (results / "runs" / "SAM_seed=0.log").exists()


FAIL = {"class_path": "support.studies.Fail"}


def test_its_processes_end_with_the_command(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    config = write_study(tmp_path, seeds=1, options={**DDP, "trainer.max_epochs": 5000})
    results = tmp_path / "results"
    process = start(results, "--config", config)
    metrics = results / "runs" / "SAM_seed=0" / "metrics.csv"
    wait_for(metrics.exists, process)
    mine = processes_of(tmp_path)
    assert len(mine) == 2
    process.kill()
    process.join()
    wait_until(lambda: all(map(gone, mine)))


def processes_of(folder: Path) -> list[int]:
    """The processes of runs: those whose command is that of `own_process`, started for a study in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            files = {os.readlink(link) for link in (entry / "fd").iterdir()}
        except (OSError, ValueError):
            continue
        if b"lightning_same.experiments.study.own_process" in words and any(str(folder) in file for file in files):
            found.append(int(entry.name))
    return found
