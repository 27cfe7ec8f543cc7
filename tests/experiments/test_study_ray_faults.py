"""What the executor on Ray does with runs that are lost, fail, come back or have to end; no run trains."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ray_jobs import Apart, at_the_gate, cluster_of, patiently, planned, pretend

from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.outcome import state
from lightning_same.experiments.study.plan import Run

pytest.importorskip("ray")

from lightning_same.experiments.study.executors import ray_cluster
from lightning_same.experiments.study.executors.events import Event
from lightning_same.experiments.study.executors.ray_cluster import RayCluster
from lightning_same.experiments.study.executors.ray_flights import Flights
from lightning_same.experiments.study.executors.ray_worker import Job

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("died")


@pytest.fixture(scope="module")
def cluster(died: Path) -> Iterator[Any]:
    """A head without CPUs and two nodes with two each."""
    with cluster_of(2, cpus=2, DIED=died, GATE=died / "gate") as made:
        yield made


@pytest.fixture
def gate(died: Path) -> Path:
    """As long as it is not there, runs wait `at_the_gate`."""
    gate = died / "gate"
    gate.unlink(missing_ok=True)
    return gate


def job_of(directory: Path) -> Job:
    return Job(directory, None, threads=1, versions={}, cwd=None, path=(), perform=pretend)


def performed(executor: RayCluster, runs: list[Run], directory: Path, **options: Any) -> list[Event]:
    with executor:
        return list(executor.run_all(runs, directory, 1, **options))


def test_what_is_lost_is_begun_anew_and_what_fails_is_named(cluster: Any, died: Path, tmp_path: Path) -> None:
    runs = planned("a", "die-once", "die", "fail", "b")
    events = performed(RayCluster(cluster.address, perform=pretend, retries=1), runs, tmp_path)
    of = {run.name: [(event.kind, event.value) for event in events if event.run.name == run.name] for run in runs}
    assert of["a"][-1] == of["b"][-1] == of["die-once"][-1] == ("done", None)
    assert [kind for kind, _ in of["die-once"]].count("again") == 1
    kinds = [kind for kind, _ in of["die"]]
    assert kinds.count("again") == 1
    assert kinds[-1] == "failed"
    assert of["die"][-1][1].startswith("it was lost 2 times, at last: WorkerCrashedError")
    assert len(list(died.glob("die.*"))) == 2
    assert of["fail"][-1] == ("failed", f"RuntimeError: this run fails (see {tmp_path / 'fail.log'})")
    assert [kind for kind, _ in of["fail"]].count("again") == 0
    assert "this run fails" in (tmp_path / "fail.log").read_text()
    assert {run.name for run in runs if state(run, tmp_path).kind == "done"} == {"a", "b", "die-once"}
    started = [event.value for event in events if event.kind == "started"]
    assert all("(" in name for name in started), started  # all nodes have the name of this machine


def test_runs_come_back_whole_where_no_directory_is_shared(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "Job", Apart)
    runs = planned("a", "fail", "b")
    directory = tmp_path / "a: b"  # no plain scalar in YAML
    events = performed(RayCluster(cluster.address, perform=pretend), runs, directory)
    ends = {event.run.name: event for event in events if event.kind in ("done", "failed")}
    assert ends["a"].kind == ends["b"].kind == "done"
    assert ends["fail"].value == f"RuntimeError: this run fails (see {directory / 'fail.log'})"
    assert "fail writes to its log" in (directory / "fail.log").read_text()
    assert {path.name for path in directory.iterdir() if path.name[0] != "."} == {"a", "b", "fail.log"}
    for name in "a", "b":
        place = directory / name
        assert yaml.safe_load((place / "fit.yaml").read_text()) == {"save_dir": str(place)}
        text = (place / "config.yaml").read_text()
        assert text.startswith("# lightning==2\n")
        assert yaml.safe_load(text) == {"trainer": {"default_root_dir": str(place)}}
        assert "files" in (place / "done.json").read_text()
    assert not list(directory.glob(".landing/*"))


def test_no_more_than_are_allowed_go_on_at_a_time(cluster: Any, gate: Path, tmp_path: Path) -> None:
    going, most = set(), 0
    with RayCluster(cluster.address, perform=at_the_gate, max_concurrent=2) as executor:
        for event in executor.run_all(planned(*"abcdef"), tmp_path, 1):
            if event.kind == "started":
                going.add(event.run.name)
            if event.kind == "done":
                going.discard(event.run.name)
            most = max(most, len(going))
            if most == 2:
                gate.touch()
    assert most == 2


def test_to_stop_ends_what_goes_on_and_keeps_what_is_finished(cluster: Any, tmp_path: Path) -> None:
    runs = planned("a", "wait-1", "wait-2", "wait-3")
    stop = threading.Event()
    kinds = []
    with RayCluster(cluster.address, perform=pretend) as executor:
        for event in executor.run_all(runs, tmp_path, 1, stop.is_set):
            kinds.append((event.run.name, event.kind))
            if event.run.name == "a" and event.kind == "done":
                stop.set()
    assert ("a", "done") in kinds
    assert not [kind for name, kind in kinds if name != "a" and kind in ("done", "failed", "again")]
    assert not list(tmp_path.glob(".*.part"))


def test_a_node_that_comes_in_the_middle_is_used(cluster: Any, gate: Path, tmp_path: Path) -> None:
    nodes = set()
    added = None
    with RayCluster(cluster.address, perform=at_the_gate) as executor:
        for event in executor.run_all(planned(*"abcdefgh"), tmp_path, 1):
            if event.kind == "started":
                nodes.add(event.value)
            if added is None:
                added = patiently(cluster.add_node, num_cpus=2)
            if len(nodes) == 3:  # Else the runs wait for ever.
                gate.touch()
    cluster.remove_node(added)
    assert len(nodes) == 3


def test_a_lost_run_does_not_wait_for_a_busy_node(cluster: Any, died: Path, tmp_path: Path) -> None:
    """It is begun anew on another node if one has room now, else on its own."""
    stop = threading.Event()
    seen = []
    with RayCluster(cluster.address, perform=pretend, cpus=2) as executor:
        for event in executor.run_all(planned("wait", "die-once-more"), tmp_path, 1, stop.is_set):
            seen.append((event.run.name, event.kind))
            if event.kind == "done":
                stop.set()
    assert [kind for name, kind in seen if name == "die-once-more" and kind in ("again", "done")] == ["again", "done"]


def test_what_runs_tell_is_kept_where_the_command_runs(cluster: Any, tmp_path: Path) -> None:
    """Else it would be lost with the node that keeps it."""
    ray = pytest.importorskip("ray")
    with RayCluster(cluster.address, perform=pretend):
        flights = Flights(job_of(tmp_path), [], lambda run: {}, 0, None)
        where = flights.news.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        assert ray.get(where) == ray.get_runtime_context().get_node_id()
        flights.cancel()


def test_an_epoch_tells_also_where_the_run_has_begun(cluster: Any, tmp_path: Path) -> None:
    """If the message from its beginning was lost."""
    ray = pytest.importorskip("ray")
    with RayCluster(cluster.address, perform=pretend):
        flights = Flights(job_of(tmp_path), planned("wait"), lambda run: {"num_cpus": 2, "num_gpus": 0}, 0, None)
        assert flights.go_on()
        node = flights.nodes.alive()[0]
        told = []
        for news in [("wait", 0, node, 3)], [("wait", 0, node, 4), ("wait", 1, node, 9), ("other", 0, node, 9)]:
            flights.asked = ray.put(news)
            told += [(event.kind, event.value) for event in flights.landed(wait=False)]
        assert told == [("started", flights.nodes.name(node)), ("epoch", 3), ("epoch", 4)]
        flights.cancel()


def test_nodes_that_differ_are_told_before_the_first_run(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ray_cluster.versions()
    monkeypatch.setattr(ray_cluster, "versions", lambda: mine | {"torch": "1.0"})
    with RayCluster(cluster.address) as executor, pytest.raises(StudyError) as refused:
        executor.check(planned("a"), tmp_path, 1)
    assert f"has torch {mine['torch']} instead of 1.0; " in str(refused.value)
    assert str(refused.value).endswith("Install the same versions everywhere.")
    # One that comes later, or is asked too early, does not train.
    events = performed(RayCluster(cluster.address, perform=pretend, retries=1), planned("a"), tmp_path)
    assert [event.kind for event in events if event.kind != "started"] == ["again", "failed"]
    assert "has torch" in events[-1].value


def test_what_has_no_room_is_told(cluster: Any, tmp_path: Path) -> None:
    (run,) = planned("a")
    run.config["trainer"]["accelerator"] = "gpu"
    with RayCluster(cluster.address, gpus=0) as executor, pytest.raises(StudyError, match="give --gpus-per-run 1"):
        executor.check([run], tmp_path, 1)
    run.config["trainer"]["devices"] = 2
    with RayCluster(cluster.address, gpus=1) as executor, pytest.raises(StudyError, match="on 2 GPUs and gets 1: give"):
        executor.check([run], tmp_path, 1)


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match=r"--ray ray://there:1: Ray Client is not supported"):
        RayCluster("ray://there:1").__enter__()
    monkeypatch.setattr("ray.init", refused)
    with pytest.raises(StudyError, match=r"^--ray auto: no cluster can be reached: there is none$"):
        RayCluster("auto").__enter__()


def refused(**options: Any) -> None:
    raise ConnectionError("there is\nnone")
