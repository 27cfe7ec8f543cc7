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
from support.speed import slowness
from support.studies import content, markers, said, wait_for, write_study

from lightning_same.experiments.study import main

pytest.importorskip("ray")

from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]
KILLS = 5


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two nodes of one slot each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def begun(results: Path) -> int:
    """How many runs have begun somewhere, as the command has told."""
    return said(results).count(": on ")


def more_begun_than(results: Path, number: int) -> bool:
    return begun(results) > number


def test_five_nodes_die_and_the_report_is_the_same(
    cluster: Cluster, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    slow = [{"class_path": "support.studies.Slow", "init_args": {"seconds": 0.3}}]
    config = write_study(tmp_path, seeds=4, options={"trainer.callbacks": slow})
    alone = tmp_path / "alone" / "results"
    main(["--config", config, "--results", str(alone)])
    results = tmp_path / "results"
    process = start(results, "--config", config, "--ray", cluster.address, "--retries", str(KILLS))
    draw, seen = random.Random(0), 0
    for _ in range(KILLS):
        wait_for(partial(more_begun_than, results, seen), process)
        seen = begun(results)
        time.sleep(draw.uniform(0, 1))
        cluster.remove_node(draw.choice(list(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(num_cpus=1)
    process.join(600 * slowness())
    assert process.exitcode == 0, said(results)
    assert said(results).count("lost, and begun anew") >= 1
    assert len(markers(results)) == 8
    assert content(results) == content(alone)


def test_killed_and_interrupted_it_goes_on(
    cluster: Cluster, study: str, undisturbed: Path, start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    process = start(results, "--config", study, "--ray", cluster.address)
    wait_for(lambda: len(markers(results)) >= 1, process)
    process.kill()
    process.join()
    kept = markers(results)
    process = start(results, "--config", study, "--ray", cluster.address)
    wait_for(lambda: len(markers(results)) > len(kept), process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(120 * slowness())
    assert process.exitcode == 130, said(results)
    assert "Traceback" not in said(results)
    assert re.search(r"[234] of 4 runs are finished", (results / "report.md").read_text())
    process = start(results, "--config", study, "--ray", cluster.address)
    process.join(300 * slowness())
    assert process.exitcode == 0, said(results)
    assert markers(results).items() >= kept.items()
    assert content(results) == content(undisturbed)
    assert "All 2 nodes have the versions and the data that are needed; they see" in said(results)


def test_a_ray_of_its_own_trains_on_several_devices(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    """DDP in a task; the strategy starts the run's own process once more."""
    options: dict[str, Any] = {"trainer.devices": 2, "data.init_args.batch_size": 10}
    options["trainer.strategy"] = "ddp"
    config = write_study(tmp_path, seeds=1, methods={"SAM": {"sam": {"class_path": "SAM"}}}, options=options)
    results = tmp_path / "results"
    process = start(results, "--config", config, "--ray", "--cpus-per-run", "0.5")
    process.join(600 * slowness())
    assert process.exitcode == 0, said(results)
    alone = tmp_path / "alone" / "results"
    process = start(alone, "--config", config)
    process.join(600 * slowness())
    assert process.exitcode == 0, said(alone)
    assert content(results) == content(alone)
