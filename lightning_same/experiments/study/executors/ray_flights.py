"""The runs of a study as Ray tasks: begun, heard of, begun anew where they were lost, landed."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_same.cli.errors import one_line
from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.executors.attempt import log_of
from lightning_same.experiments.study.executors.events import LOOK, Event
from lightning_same.experiments.study.executors.landing import land
from lightning_same.experiments.study.executors.ray_nodes import Nodes, on_node, the_ray
from lightning_same.experiments.study.executors.ray_worker import Answer, Job, perform
from lightning_same.experiments.study.plan import Run

IN_FLIGHT = 1000
"""Tasks that Ray is given at a time; enough for it to start further machines, where it can."""


@dataclass
class _Flight:
    """A task.

    Attributes:
        run: the run that it performs.
        node: the id of its node, once it has begun.
        lost: how often the run was lost before.
    """

    run: Run
    lost: int = 0
    node: str = ""


class Flights:
    """The tasks of a study, and the runs that have none yet.

    Args:
        job: what all runs have in common.
        runs: in the order in which they are begun.
        resources: what Ray keeps free for a run.
        retries: how often a run that was lost is begun anew.
        max_concurrent: how many tasks there are at a time; None for `IN_FLIGHT`.
    """

    def __init__(
        self,
        job: Job,
        runs: Sequence[Run],
        resources: Callable[[Run], dict[str, float]],
        retries: int,
        max_concurrent: int | None,
    ) -> None:
        ray = the_ray()
        self.job, self.resources, self.retries = job, resources, retries
        self.there = ray.put(job)
        self.tasks: dict[tuple[tuple[str, float], ...], Any] = {}
        self.most = max_concurrent or IN_FLIGHT
        self.left = deque(map(_Flight, runs))
        self.going: dict[Any, _Flight] = {}
        self.nodes = Nodes()
        self.asked: Any = None
        # Nowhere but here: what runs tell would be lost with the machine that keeps it.
        here = on_node(ray.get_runtime_context().get_node_id(), soft=False)
        lasting = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        self.news = lasting(_News).options(scheduling_strategy=here).remote()

    def go_on(self) -> bool:
        """Begin as many runs as may be; whether there is one that goes on."""
        while self.left and len(self.going) < self.most:
            self._begin(self.left.popleft())
        return bool(self.going)

    def _begin(self, flight: _Flight) -> None:
        task = self._task(self.resources(flight.run))
        others = [node for node in self.nodes.alive() if node != flight.node] if flight.node else []
        if others:
            task = task.options(scheduling_strategy=on_node(others[flight.lost % len(others)], soft=True))
        flight.node = ""
        self.going[task.remote(self.there, flight.run, flight.lost, self.news)] = flight

    def _task(self, resources: dict[str, float]) -> Any:
        """Ray's own of `_fly`, one for each kind of run: each new one would be sent to all processes."""
        known = tuple(resources.items())
        if known not in self.tasks:
            # A process that has held a GPU ends, so that it does not hold its memory.
            calls = {"max_calls": 1} if resources["num_gpus"] else {}
            self.tasks[known] = the_ray().remote(max_retries=0, **resources, **calls)(_fly)
        return self.tasks[known]

    def landed(self, wait: bool = True) -> Iterator[Event]:
        """What has happened since the last look; waits a moment for it."""
        ray = the_ray()
        going = list(self.going)
        ready, _ = ray.wait(going, num_returns=1, timeout=LOOK if wait else 0)
        if ready:
            ready, _ = ray.wait(going, num_returns=len(going), timeout=0)
        yield from self._told()
        for reference in ready:
            yield self._ended(reference, self.going.pop(reference))

    def _told(self) -> Iterator[Event]:
        """What runs that go on have told. An answer that takes longer, as the first one may, is taken the next time."""
        ray = the_ray()
        self.asked = self.asked or self.news.take.remote()
        answered, _ = ray.wait([self.asked], timeout=1)
        if not answered:
            return
        self.asked, news = None, []
        with contextlib.suppress(ray.exceptions.RayError):  # its process has died, and is started again
            news = ray.get(answered[0])
        flights = {(flight.run.name, flight.lost): flight for flight in self.going.values()}
        for name, lost, node, epochs in news:
            flight = flights.get((name, lost))
            if flight is None:
                continue
            if flight.node != node:
                flight.node = node
                yield Event("started", flight.run, self.nodes.name(node))
            if epochs:
                yield Event("epoch", flight.run, epochs)

    def _ended(self, reference: Any, flight: _Flight) -> Event:
        ray = the_ray()
        run = flight.run
        try:
            answer: Answer = ray.get(reference)
        except (
            ray.exceptions.RayTaskError,
            ray.exceptions.RuntimeEnvSetupError,
            ray.exceptions.TaskUnschedulableError,
            ray.exceptions.TaskCancelledError,
        ) as error:
            return Event("failed", run, f"{type(error).__name__}: {one_line(error, 300)}")
        except ray.exceptions.RayError as error:  # the process, the machine, or what it has answered is gone
            return self._again(flight, f"{type(error).__name__}: {one_line(error, 120)}")
        if answer.kind in ("unfit", "busy"):
            return self._again(flight, answer.why)
        if answer.log is not None:
            log_of(run, self.job.directory).write_bytes(answer.log)
        if answer.packed is not None:
            try:
                land(run, answer.packed, self.job.directory)
            except StudyError as error:
                return self._again(flight, str(error))
            log_of(run, self.job.directory).unlink(missing_ok=True)
        return Event(answer.kind, run, answer.why or None)  # type: ignore[arg-type]

    def _again(self, flight: _Flight, why: str) -> Event:
        flight.lost += 1
        if flight.lost > self.retries:
            times = "once" if flight.lost == 1 else f"{flight.lost} times"
            return Event("failed", flight.run, f"it was lost {times}, at last: {why}")
        self.left.appendleft(flight)
        return Event("again", flight.run, why)

    def cancel(self) -> None:
        """End all tasks, with what they have started."""
        ray = the_ray()
        for reference in self.going:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(reference, force=True)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.news)


class _News:
    """What runs tell while they go on, kept until the command asks."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int, str, int]] = []

    def tell(self, run: str, lost: int, node: str, epochs: int) -> None:
        self.kept.append((run, lost, node, epochs))

    def take(self) -> list[tuple[str, int, str, int]]:
        kept, self.kept = self.kept, []
        return kept


def _fly(job: Job, run: Run, lost: int, news: Any) -> Answer:
    """The task: performs a run and tells how far it is."""
    node = the_ray().get_runtime_context().get_node_id()

    def tell(epochs: int) -> None:
        # Where it goes on is told each time: an earlier message may be lost.
        news.tell.remote(run.name, lost, node, epochs)

    tell(0)
    return perform(job, run, tell)
