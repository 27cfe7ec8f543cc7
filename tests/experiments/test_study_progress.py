"""What the screen shows while a study runs: epochs that are over, and a line for each run that ends."""

import io

from rich.console import Console
from support.planted import run_of

from lightning_same.experiments.study.executors.events import Event
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.progress import StudyProgress


def of_epochs(method: str, epochs: int) -> Run:
    run = run_of(method, 0)
    return Run(run.name, run.method, run.settings, run.seed, {"trainer": {"max_epochs": epochs}})


def test_the_bar_counts_each_epoch_once() -> None:
    lost, early, failed, earlier = (of_epochs(name, 10) for name in ("lost", "early", "failed", "earlier"))
    shown = io.StringIO()
    progress = StudyProgress([lost, early, failed, earlier], [lost, early, failed], Console(file=shown, width=200))
    (task,) = progress.bar.tasks
    assert (task.completed, task.total) == (0, 30)
    events: list[tuple[Run, str, object, int]] = [
        (lost, "started", "", 0),
        (lost, "epoch", 1, 1),
        (lost, "epoch", 7, 7),
        (early, "started", "", 7),
        (early, "epoch", 2, 9),
        (lost, "again", "its process has died", 2),  # Its epochs are not there any more.
        (lost, "epoch", 3, 5),
        (early, "done", None, 13),  # It stopped early and is over.
        (failed, "failed", "of a reason", 23),
        (lost, "epoch", 99, 30),  # More than were planned are none.
        (lost, "done", None, 30),
    ]
    for run, kind, value, completed in events:
        progress.show(Event(kind, run, value))  # type: ignore[arg-type]
        assert task.completed == completed, (run.name, kind)
    assert shown.getvalue().splitlines() == [
        "lost_0: lost, and begun anew: its process has died",
        "[2/4] early_0: done",
        "[3/4] failed_0: FAILED: of a reason",
        "[4/4] lost_0: done",
    ]


def test_nodes_are_counted_where_there_are_some() -> None:
    first, second = of_epochs("first", 5), of_epochs("second", 5)
    progress = StudyProgress([first, second], [first, second], Console(file=io.StringIO(), width=200))
    (task,) = progress.bar.tasks
    assert task.description == "0/2 runs,"
    progress.show(Event("started", first, "node-a"))
    assert task.description == "0/2 runs, 1 on 1 node,"
    progress.show(Event("started", second, "node-b"))
    assert task.description == "0/2 runs, 2 on 2 nodes,"
    progress.show(Event("done", first, None))
    assert task.description == "1/2 runs, 1 on 1 node,"
