"""Workers that die with children, and a study that is interrupted more than once."""

import os
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from support.speed import ended
from support.studies import content, gone, markers, said, wait_for, wait_until, write_study


def children(process: BaseProcess) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def test_a_worker_that_dies_while_its_child_lives_is_seen(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """The study waited for ever for the end of a pipe that the child had inherited."""
    place = tmp_path / "child"
    fault = {"class_path": "support.studies.ForkAndDie", "init_args": {"place": str(place)}}
    methods = {"bad": {"sam": None, "trainer.callbacks": [fault]}, "SAM": {"sam": {"class_path": "SAM"}}}
    config = write_study(tmp_path, methods=methods, seeds=1)
    results = tmp_path / "results"
    process = start(results, "--config", config)
    assert ended(process, 120)
    assert process.exitcode == 1, said(results)
    assert markers(results).keys() == {"SAM_seed=0"}
    assert re.search(r"bad_seed=0: its process died with exit code -11, SIGSEGV \(see .*\.log\)", said(results))
    wait_until(lambda: gone(int(place.read_text())))


@pytest.mark.parametrize("distance", [0.0, 0.05, *(pytest.param(late, marks=pytest.mark.slow) for late in (0.3, 1.0))])
def test_ctrl_c_twice_leaves_a_report_or_none_and_nothing_running(
    distance: float, study: str, undisturbed: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    process = start(results, "--config", study, "--jobs", "2")
    wait_for(lambda: len(markers(results)) >= 1, process)
    workers = children(process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    time.sleep(distance)
    if process.is_alive():
        os.kill(process.pid, signal.SIGINT)
    assert ended(process, 120)
    assert process.exitcode == 130, said(results)
    assert "Traceback" not in said(results)
    wait_until(lambda: all(map(gone, workers)))
    report = results / "report.md"
    if report.exists():
        assert re.search(r"[1-4] of 4 runs are finished", report.read_text())
        assert {path.name for path in results.iterdir()} >= {"report.html", "tables", "figures", ".report.json"}
    process = start(results, "--config", study)
    assert ended(process, 120)
    assert process.exitcode == 0, said(results)
    assert content(results) == content(undisturbed)


def test_sigterm_is_an_interruption_too(study: str, start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = start(results, "--config", study)
    wait_for(lambda: len(markers(results)) >= 1, process)
    process.terminate()
    assert ended(process, 120)
    assert process.exitcode == 130, said(results)
    assert "The same command goes on" in said(results)
    assert (results / "report.md").exists()


def test_children_of_a_worker_end_with_the_command(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """Killed without a chance to clean up, in the midst of a run whose data loader has a process of its own."""
    config = write_study(tmp_path, seeds=1, options={"data.init_args.num_workers": 1, "trainer.max_epochs": 500})
    results = tmp_path / "results"
    process = start(results, "--config", config)
    wait_for(lambda: bool(children(process)), process)
    (worker,) = children(process)
    loader = Path(f"/proc/{worker}/task/{worker}/children")
    wait_for(lambda: bool(loader.read_text().split()), process)
    everything = [worker, *map(int, loader.read_text().split())]
    process.kill()
    process.join()
    wait_until(lambda: all(map(gone, everything)))
