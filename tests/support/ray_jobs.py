"""Stand-ins for the training of a run, which take no time, and a machine that shares no directory."""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from lightning_same.experiments.study.executors.events import Executor
from lightning_same.experiments.study.executors.processes import Processes
from lightning_same.experiments.study.executors.ray_cluster import RayCluster
from lightning_same.experiments.study.executors.ray_worker import Job
from lightning_same.experiments.study.identity import checksum
from lightning_same.experiments.study.outcome import check
from lightning_same.experiments.study.plan import Run
from support.paths import TESTS
from support.studies import begin

METRICS = "epoch,step,val/accuracy\n0,1,0.5\n"


class Apart(Job):
    """What is written in the directory of the results stays unseen."""

    @override
    def shared(self) -> bool:
        return False


@contextlib.contextmanager
def cluster_of(nodes: int, cpus: int, **environment: Path) -> Iterator[Any]:
    """A head without CPUs and some nodes, whose processes find the tests' modules.

    Args:
        nodes: how many.
        cpus: of each.
        **environment: more variables of its processes.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        for name, path in environment.items():
            patch.setenv(name, str(path))
        made = patiently(Cluster, initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(nodes):
                patiently(made.add_node, num_cpus=cpus)
            yield made
        finally:
            made.shutdown()


def patiently(start: Callable[..., Any], **options: Any) -> Any:
    """Start something of Ray's, which gives up after 30 seconds however busy the machine is; a few times."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return start(**options)
    return start(**options)


def planned(*names: str) -> list[Run]:
    """Runs without a configuration."""
    return [Run(name, "SAM", {}, 0, {"trainer": {"max_epochs": 2, "devices": 1}, "name": name}) for name in names]


def pretend(run: Run, directory: Path, threads: int, tell: Callable[[int], None]) -> None:
    """Leave what a run leaves. Its name says what goes wrong: fail, die, die-once, wait."""
    tell(1)
    os.write(1, f"{run.name} writes to its log\n".encode())
    if run.name.startswith("fail"):
        raise RuntimeError("this run fails")
    if run.name.startswith("die"):
        mark = Path(os.environ["DIED"]) / f"{run.name}.{os.getpid()}"
        first = not any(path.name.startswith(f"{run.name}.") for path in mark.parent.iterdir())
        mark.touch()
        if first or "once" not in run.name:
            os.kill(os.getpid(), signal.SIGKILL)
    if run.name.startswith("wait"):
        time.sleep(600)
    leave(run, directory)


def leave(run: Run, directory: Path, metrics: str = METRICS) -> None:
    """Leave what a finished run leaves."""
    place = directory / run.name
    place.mkdir(parents=True)
    (place / "metrics.csv").write_text(metrics)
    (place / "fit.yaml").write_text(f"save_dir: {place}\n")
    (place / "config.yaml").write_text(f"# lightning==2\ntrainer:\n  default_root_dir: {place}\n")
    outcome = {
        "run": run.name,
        "digest": run.digest,
        "test": {"last": {"test/accuracy": 0.5}},
        "best_epoch": None,
        "noise_rate": None,
        "seconds_per_epoch": 0.1,
        "files": {"metrics.csv": checksum(metrics)},
    }
    (place / "done.json").write_text(json.dumps(outcome | {"check": check(outcome)}))


class Unasked(RayCluster):
    """Performs runs that only pretend to train, and does not ask the nodes what they have installed."""

    def __init__(self, address: str, retries: int) -> None:
        super().__init__(address, retries=retries, perform=in_epochs)

    @override
    def check(self, runs: Sequence[Run], directory: Path, threads: int) -> list[str]:
        return []


def begin_pretending(arguments: list[str], log: str) -> None:
    """The command in a process of its own, whose runs only pretend to train."""
    from lightning_same.experiments.study import command

    def executor(options: argparse.Namespace) -> Executor:
        return Unasked(options.ray, options.retries or 0) if options.ray else Processes(1, perform=in_epochs)

    command._executor = executor
    begin(arguments, log)


EPOCHS = 4


def in_epochs(run: Run, directory: Path, threads: int, tell: Callable[[int], None]) -> None:
    """Metrics that follow from the configuration alone, in half a second; of seed 2, only when the gate is open."""
    rows = ["epoch,step,train_eval/accuracy,val/accuracy"]
    for epoch in range(EPOCHS):
        time.sleep(0.125)
        tell(epoch + 1)
        draw = random.Random(f"{run.digest} {epoch}")
        rows.append(f"{epoch},{epoch},{draw.uniform(0.4, 0.9)},{draw.uniform(0.4, 0.9)}")
    while run.seed == 2 and not Path(os.environ.get("GATE", "/")).exists():
        time.sleep(0.05)
    shutil.rmtree(directory / run.name, ignore_errors=True)
    leave(run, directory, "\n".join(rows) + "\n")


def at_the_gate(run: Run, directory: Path, threads: int, tell: Callable[[int], None]) -> None:
    """As `pretend`, once the gate is open."""
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.05)
    pretend(run, directory, threads, tell)
