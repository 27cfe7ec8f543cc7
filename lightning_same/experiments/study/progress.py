"""What the screen shows while a study runs."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_same.experiments.study.executors.events import Event
from lightning_same.experiments.study.plan import Run


class StudyProgress:
    """One bar over the epochs of all runs with the time left, and a line for each run that ends.

    Args:
        runs: all runs of the study.
        left: those that are not finished yet.
        console: where to show it.
    """

    def __init__(self, runs: Sequence[Run], left: Sequence[Run], console: Console) -> None:
        self.total, self.ended = len(runs), len(runs) - len(left)
        self.console = console
        self.epochs = {run.name: 0 for run in left}
        self.nodes: dict[str, str] = {}
        # The speed over an hour: methods differ in the passes that they take, and the bar shall not jump about.
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("epochs,"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
            speed_estimate_period=3600,
        )
        self.task = self.bar.add_task(self._count(), total=sum(run.epochs or 1 for run in left))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        run = event.run
        match event.kind:
            case "started":
                epochs = 0
                self.nodes[run.name] = event.value
                if event.value:
                    self._print(f"{run.name}: on {event.value}")
            case "epoch":
                epochs = min(event.value, run.epochs or 0)
            case "again":
                epochs = 0
                self.nodes.pop(run.name, None)
                self._print(f"{run.name}: lost, and begun anew: {event.value}")
            case _:
                epochs = run.epochs or 1  # one that stopped early or failed is over, too
                self.ended += 1
                self.nodes.pop(run.name, None)
                said = "done" if event.kind == "done" else f"FAILED: {event.value}"
                self._print(f"[{self.ended}/{self.total}] {run.name}: {said}")
        self.bar.update(self.task, advance=epochs - self.epochs[run.name], description=self._count())
        self.epochs[run.name] = epochs

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False)

    def _count(self) -> str:
        nodes = len(set(self.nodes.values()) - {""})
        where = f" {len(self.nodes)} on {nodes} node{'s' if nodes > 1 else ''}," if nodes else ""
        return f"{self.ended}/{self.total} runs,{where}"
