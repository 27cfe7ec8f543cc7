"""What a study costs beside its trainings: per run, by processes and on Ray; and for 2,000 runs that are planned.

``python benchmarks/study_executors.py`` writes its figures to docs/benchmarks.md. A run sleeps for a second, so that
what is measured is the executor, also on a busy machine.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from figures import system, write

from lightning_same.experiments.study.command import _left
from lightning_same.experiments.study.executors.events import Executor
from lightning_same.experiments.study.executors.processes import Processes
from lightning_same.experiments.study.executors.ray_cluster import RayCluster
from lightning_same.experiments.study.identity import checksum
from lightning_same.experiments.study.outcome import check
from lightning_same.experiments.study.plan import PLAN, RUNS, Run, Study

SECONDS = 1.0
SLOTS = 4
METRICS = "epoch,step,val/accuracy\n" + "".join(f"{epoch},{epoch},0.5\n" for epoch in range(40))


def leave(run: Run, directory: Path) -> None:
    """What a finished run leaves."""
    place = directory / run.name
    place.mkdir(parents=True)
    (place / "metrics.csv").write_text(METRICS)
    said = {"digest": run.digest, "test": {"last": {"test/accuracy": 0.5}}, "best_epoch": 1, "noise_rate": 0.4}
    said |= {"seconds_per_epoch": 0.1, "files": {"metrics.csv": checksum(METRICS)}}
    (place / "done.json").write_text(json.dumps(said | {"check": check(said)}))


def sleep(run: Run, directory: Path, threads: int, tell: Callable[[int], None]) -> None:
    """A run of a second, with four epochs."""
    for epoch in range(4):
        time.sleep(SECONDS / 4)
        tell(epoch + 1)
    leave(run, directory)


def cpu_seconds() -> float:
    """CPU time of this process and of all that it has started and that are alive."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def overhead(executor: Executor, runs: list[Run]) -> dict[str, float]:
    """What a run takes beyond itself: seconds of its slot, and CPU seconds of all processes.

    From the moment when each slot has finished a first run, so that all processes are there and have loaded what they
    need, to the last run's end.
    """
    first = [Run(f"first-{number}", "SAM", {}, 0, {"trainer": {"devices": 1}}) for number in range(SLOTS)]
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, executor:
        begun = time.perf_counter()
        for event in executor.run_all([*first, *runs], Path(folder), 1):
            assert event.kind not in ("failed", "again"), event
            if event.kind == "done":
                ends.append((time.perf_counter(), cpu_seconds() if len(ends) + 1 in (SLOTS, SLOTS + len(runs)) else 0))
    assert len(ends) == SLOTS + len(runs)
    wall, cpu = (end - start for start, end in zip(ends[SLOTS - 1], ends[-1], strict=True))
    return {
        "wall": round(wall, 2),
        "overhead_per_run": round((wall - SECONDS * len(runs) / SLOTS) / (len(runs) / SLOTS), 4),
        "cpu_per_run": round(cpu / len(runs), 4),
        "start": round(ends[SLOTS - 1][0] - begun - SECONDS, 2),
    }


def listed(folder: Path) -> dict[str, float]:
    """2,000 runs of which half are finished: CPU seconds to read, list, check and resume."""
    base: dict[str, Any] = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 2},
        "model": {"class_path": "lightning_same.experiments.ImageClassifier", "init_args": {"num_classes": 10}},
        "data": {"class_path": "lightning_same.experiments.DigitsData", "init_args": {"fake": True}},
    }
    network = {"class_path": "lightning_same.experiments.SmallCNN", "init_args": {"num_classes": 10}}
    base["model"]["init_args"]["model"] = network
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    study = {"base": "base.yaml", "seeds": 100, "reference": "SAM"}
    study["methods"] = {"SAM": {"sam": {"class_path": "SAM"}}, "SAME": {"sam": {"class_path": "SAME"}}}
    study["sweep"] = {"sam.init_args.rho": [number / 100 for number in range(1, 11)]}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    results = folder / "results"
    made = Study.read(folder / "study.yaml")
    assert len(made.runs) == 2000
    results.mkdir()
    (results / PLAN).write_text(made.dump())
    for run in made.runs[::2]:
        leave(run, results / RUNS)
    from lightning_same.experiments.study import main

    out = io.StringIO()
    begun = time.process_time()
    with contextlib.redirect_stdout(out):
        main(["--config", str(folder / "study.yaml"), "--results", str(results), "--dry-run"])
    dry = time.process_time() - begun
    assert out.getvalue().count("done  ") == 1000
    begun = time.process_time()
    resumed = Study.read(folder / "study.yaml")
    assert len(_left(resumed, results)) == 1000
    return {"dry_run_cpu": round(dry, 2), "left_cpu": round(time.process_time() - begun, 2)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    runs = [Run(f"run-{number}", "SAM", {}, 0, {"trainer": {"devices": 1}}) for number in range(given.runs)]
    found: dict[str, Any] = {"runs": given.runs, "slots": SLOTS, "seconds": SECONDS}
    with tempfile.TemporaryDirectory() as folder:
        found["planned"] = listed(Path(folder))
    print(found["planned"], flush=True)
    found["processes"] = overhead(Processes(SLOTS, perform=sleep), runs)
    print("--jobs 4", found["processes"], flush=True)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    try:
        found["ray"] = overhead(RayCluster(cluster.address, perform=sleep), runs)
    finally:
        cluster.shutdown()
    print("--ray", found["ray"], flush=True)
    if given.runs == 200:
        rows = [
            [
                name,
                f"{1000 * found[kind]['cpu_per_run']:.0f} ms",
                f"{1000 * found[kind]['overhead_per_run']:.0f} ms",
                f"{found[kind]['start']:.1f} s",
            ]
            for name, kind in (("`--jobs 4`", "processes"), ("`--ray`, 2 nodes of 2 slots", "ray"))
        ]
        head = ["by", "CPU time of all processes, per run", "time beyond the run's second", "until each slot has begun"]
        write("study_executors", found | {"system": system(1)}, rows, head)
    return 0


if __name__ == "__main__":
    sys.exit(main())
