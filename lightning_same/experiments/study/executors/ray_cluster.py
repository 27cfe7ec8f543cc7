"""Runs on a Ray cluster, or on a Ray of this machine's own.

Ray places the tasks. What it does not know is kept here: a run that is lost with its process or its machine is begun
anew, one that fails by itself is not, and a run counts as finished by its files alone.
"""

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lightning_same.cli.errors import one_line
from lightning_same.experiments.study.environment import versions
from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.executors.events import Event, Perform
from lightning_same.experiments.study.executors.landing import remove_landings
from lightning_same.experiments.study.executors.ray_flights import Flights
from lightning_same.experiments.study.executors.ray_nodes import Nodes, on_node, the_ray
from lightning_same.experiments.study.executors.ray_worker import Found, Job, look
from lightning_same.experiments.study.own_process import accelerator_of, planned_devices, train
from lightning_same.experiments.study.plan import Run

LOCAL = "local"
"""The address of a Ray that is started for the study and stopped after it."""


class RayCluster:
    """An executor of Ray tasks.

    Args:
        address: ``host:port`` of a cluster, ``auto`` for that of this machine, or `LOCAL`.
        cpus: CPUs of a run; by default its threads, for each device.
        gpus: GPUs of a run, which may be a share of one. By default as many as its Trainer has devices if the cluster
            has GPUs and the configuration does not exclude them, else none.
        max_concurrent: how many runs go on at a time; by default as many as there is room for.
        retries: how often a run is begun anew after its process or machine has died.
        perform: what is done with a run.
    """

    def __init__(
        self,
        address: str = LOCAL,
        *,
        cpus: float | None = None,
        gpus: float | None = None,
        max_concurrent: int | None = None,
        retries: int = 2,
        perform: Perform = train,
    ) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.max_concurrent, self.retries, self.perform = max_concurrent, retries, perform
        self.dashboard = ""

    def __enter__(self) -> Self:
        ray = the_ray()
        if self.address.startswith("ray://"):
            raise StudyError(
                f"--ray {self.address}: Ray Client is not supported. Give the command on a machine of the cluster with"
                " `--ray auto`, or `--ray HOST:6379`, or hand it in by `ray job submit`."
            )
        try:
            context = ray.init(
                address=self.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True
            )
        except Exception as error:  # Ray raises that itself, where a process of its own does not start in time
            failed = "Ray does not start" if self.address == LOCAL else "no cluster can be reached"
            raise StudyError(f"--ray {self.address}: {failed}: {one_line(error, 300)}") from error
        self.dashboard = context.dashboard_url or ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        the_ray().shutdown()

    def check(self, runs: Sequence[Run], directory: Path, threads: int) -> list[str]:
        """See `Executor.check`: the versions on all machines, the data there, and whether a run has room."""
        ray = the_ray()
        nodes = Nodes()
        told = [f"Ray's dashboard: http://{self.dashboard}"] if self.dashboard else []
        told += self._check_room(runs, nodes, threads)
        with _job(directory, threads, self.perform) as job:
            kinds = list({_data(run): run for run in runs}.values())
            asked = {
                ray.remote(num_cpus=0, max_retries=0)(look)
                .options(scheduling_strategy=on_node(node, soft=False))
                .remote(job, kinds): node
                for node in nodes.alive()
            }
            found: dict[str, Found] = {}
            for reference, node in asked.items():
                try:
                    found[nodes.name(node)] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    missing = isinstance(error.cause, ImportError)
                    why = "lightning-same is missing or another" if missing else "it cannot be asked"
                    raise StudyError(f"Node {nodes.name(node)}: {why} ({one_line(error.cause, 300)}).") from error
                except ray.exceptions.RayError:
                    told.append(f"Node {nodes.name(node)} has gone.")
        unlike = [f"{name} has {', '.join(one.unlike)}" for name, one in found.items() if one.unlike]
        if unlike:
            raise StudyError(f"The environments differ: {'; '.join(unlike)}. Install the same versions everywhere.")
        wrong = [f"{name}: {one.wrong}" for name, one in found.items() if one.wrong]
        if wrong:
            raise StudyError(f"Runs cannot be built on every node. {'; '.join(wrong)}")
        nodes_have = "The node has" if len(found) == 1 else f"All {len(found)} nodes have"
        apart = [name for name, one in found.items() if not one.shared]
        shared = "they see the directory of the results" if not apart else f"runs come back from {', '.join(apart)}"
        where = "" if job.token is None else f"; {shared}"
        return [*told, f"{nodes_have} the versions and the data that are needed{where}."]

    def _check_room(self, runs: Sequence[Run], nodes: Nodes, threads: int) -> list[str]:
        told = []
        wanted = {str(run.config.get("trainer")): self.resources(run, threads, nodes.most("GPU") > 0) for run in runs}
        for kind, option in ("CPU", "cpus"), ("GPU", "gpus"):
            needed, most = max(each[f"num_{option}"] for each in wanted.values()), nodes.most(kind)
            if needed <= most:
                continue
            short = f"a run takes {needed:g} {kind}s, and no node has more than {most:g}"
            if self.address == LOCAL:
                raise StudyError(f"--{option}-per-run: {short}.")
            told.append(f"For now {short}: the runs wait for one that has.")
        for run in runs:
            gpus, devices = wanted[str(run.config.get("trainer"))]["num_gpus"], planned_devices(run.config) or 1
            if accelerator_of(run.config) in ("gpu", "cuda") and (gpus == 0 or gpus < devices > 1):
                raise StudyError(
                    f"Run {run.name!r} trains on {devices} GPUs and gets {gpus:g}: give --gpus-per-run {devices}."
                )
        return told

    def resources(self, run: Run, threads: int, gpus: bool) -> dict[str, float]:
        """What Ray keeps free for a run.

        Args:
            run: the run.
            threads: its PyTorch threads.
            gpus: whether the cluster has GPUs.
        """
        devices = planned_devices(run.config) or 1
        takes = gpus and accelerator_of(run.config) in ("auto", "gpu", "cuda")
        return {
            "num_cpus": threads * devices if self.cpus is None else self.cpus,
            "num_gpus": (devices if takes else 0) if self.gpus is None else self.gpus,
        }

    def run_all(
        self, runs: Sequence[Run], directory: Path, threads: int, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Event, None, None]:
        """See `Executor.run_all`."""
        directory.mkdir(parents=True, exist_ok=True)
        remove_landings(directory)
        with _job(directory, threads, self.perform) as job:
            gpus = Nodes().most("GPU") > 0
            flights = Flights(
                job, runs, lambda run: self.resources(run, threads, gpus), self.retries, self.max_concurrent
            )
            try:
                while flights.go_on():
                    if stopped():
                        yield from flights.landed(wait=False)
                        return
                    yield from flights.landed()
            finally:
                flights.cancel()

    def end(self) -> None:
        """Nothing: Ray ends the tasks of a command that is gone, and its own processes if they were the command's."""


@contextlib.contextmanager
def _job(directory: Path, threads: int, perform: Perform) -> Iterator[Job]:
    """What the tasks get. While it lasts, a file in the directory tells who shares it."""
    ray = the_ray()
    directory = directory.absolute()
    there = next((path for path in (directory, directory.parent) if path.is_dir()), None)
    token = None if there is None else (there / f".{secrets.token_hex(8)}.ray.part", secrets.token_hex(8))
    brought = ray.get_runtime_context().runtime_env.get("working_dir")
    try:
        if token is not None:
            token[0].write_text(token[1], encoding="utf-8")
        yield Job(
            directory=directory,
            token=token,
            threads=threads,
            versions=versions(),
            cwd=None if brought else os.getcwd(),
            path=tuple(os.path.abspath(path) for path in sys.path),
            perform=perform,
        )
    finally:
        if token is not None:
            token[0].unlink(missing_ok=True)


def _data(run: Run) -> str:
    from lightning_same.experiments.study.check import data_of

    return data_of(run)
