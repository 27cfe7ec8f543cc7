"""Studies on a Ray cluster of two nodes, whose nodes and driver are killed: the report is that of one machine."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from support.speed import ended
from support.studies import content, gone, markers, said, wait_for, wait_until, write_study

pytest.importorskip("ray")

from support.ray_jobs import begin_pretending, cluster_of, patiently

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]
KILLS = 5


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As long as it is not there, the runs of the last seed do not end."""
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def cluster(gate: Path) -> Iterator[Any]:
    """A head without CPUs and two nodes of one slot each."""
    with cluster_of(2, cpus=1, GATE=gate) as made:
        yield made


@pytest.fixture
def command(start: Callable[..., BaseProcess]) -> Callable[..., BaseProcess]:
    """The command, whose runs only pretend to train."""
    return partial(start, target=begin_pretending)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("config"), seeds=3)


@pytest.fixture(scope="module")
def alone(
    start: Callable[..., BaseProcess], config: str, gate: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the study leaves without Ray."""
    gate.touch()
    results = tmp_path_factory.mktemp("alone") / "results"
    process = start(results, "--config", config, target=begin_pretending)
    assert ended(process, 120)
    assert process.exitcode == 0, said(results)
    return content(results)


def begun(results: Path) -> int:
    """How many runs have begun somewhere, as the command has told."""
    log = Path(f"{results}.log")
    return log.read_text().count(": on ") if log.exists() else 0


def more_begun_than(results: Path, number: int) -> bool:
    return begun(results) > number


def test_five_nodes_die_and_the_report_is_the_same(
    cluster: Any, command: Callable[..., BaseProcess], config: str, alone: Any, gate: Path, tmp_path: Path
) -> None:
    gate.unlink(missing_ok=True)
    results = tmp_path / "results"
    process = command(results, "--config", config, "--ray", cluster.address, "--retries", str(2 * KILLS))
    draw, seen = random.Random(0), 0
    for _ in range(KILLS):
        wait_for(partial(more_begun_than, results, seen), process)
        seen = begun(results)
        time.sleep(draw.uniform(0, 1))
        cluster.remove_node(draw.choice(list(cluster.worker_nodes)), allow_graceful=False)
        patiently(cluster.add_node, num_cpus=1)
    gate.touch()
    assert ended(process, 300)
    assert process.exitcode == 0, said(results)
    assert said(results).count("lost, and begun anew") >= 2
    assert len(markers(results)) == 6
    assert content(results) == alone


def test_killed_and_interrupted_it_goes_on(
    cluster: Any, command: Callable[..., BaseProcess], config: str, alone: Any, gate: Path, tmp_path: Path
) -> None:
    gate.unlink(missing_ok=True)
    results = tmp_path / "results"
    process = command(results, "--config", config, "--ray", cluster.address)
    wait_for(lambda: len(markers(results)) >= 1, process)
    process.kill()
    process.join()
    kept = markers(results)
    Path(f"{results}.log").unlink()  # What the next command has begun is counted there.
    process = command(results, "--config", config, "--ray", cluster.address)
    wait_for(lambda: begun(results) > 0, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert ended(process, 120)
    assert process.exitcode == 130, said(results)
    assert "Traceback" not in said(results)
    assert re.search(r"[1-5] of 6 runs are finished", (results / "report.md").read_text())
    gate.touch()
    process = command(results, "--config", config, "--ray", cluster.address)
    assert ended(process, 300)
    assert process.exitcode == 0, said(results)
    assert markers(results).items() >= kept.items()
    assert content(results) == alone


def test_a_ray_of_its_own_trains_on_several_devices_and_stops(
    start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    """DDP in a task; Lightning starts the run's own process once more. Nothing pretends here."""
    options: dict[str, Any] = {"trainer.devices": 2, "data.init_args.batch_size": 10}
    options["trainer.strategy"] = "ddp"
    config = write_study(tmp_path, seeds=1, methods={"SAM": {"sam": {"class_path": "SAM"}}}, options=options)
    results = tmp_path / "results"
    process = start(results, "--config", config, "--ray", "--cpus-per-run", "2")
    wait_for((results / "runs" / "SAM_seed=0" / "metrics.csv").exists, process)
    started = descendants(process)
    assert ended(process, 300)
    assert process.exitcode == 0, said(results)
    assert len(started) > 5  # of Ray, and two of the run
    wait_until(lambda: all(map(gone, started)))
    assert "The node has the versions and the data that are needed; they see the directory" in said(results)
    beside = tmp_path / "beside" / "results"
    process = start(beside, "--config", config)
    assert ended(process, 300)
    assert process.exitcode == 0, said(beside)
    assert content(results) == content(beside)


def descendants(process: BaseProcess) -> list[int]:
    """All processes that a process has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    found = [process.pid]
    for parent in found:
        found += [pid for pid, its in parents.items() if its == parent]
    return [pid for pid in found[1:] if pid is not None]
