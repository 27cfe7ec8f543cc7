"""The page of results, as Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Result(NamedTuple):
    """How a test has ended.

    Attributes:
        name: what is tested.
        outcome: "passed", "failed" or "skipped".
        seconds: how long it took.
        detail: why it failed or was skipped, or what was measured.
    """

    name: str
    outcome: str
    seconds: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether it has not failed."""
        return self.outcome != "failed"


class FirstHour(NamedTuple):
    """What the long tests of the GPUs have found.

    Attributes:
        results: how each test has ended.
        seconds: how long all took.
        note: what a reader has to know, such as why nothing was run.
    """

    results: Sequence[Result]
    seconds: float
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether a test has failed."""
        return any(not result.passed for result in self.results)


def table(title: str, rows: Mapping[str, str]) -> str:
    """A section with names and values."""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *lines, ""])


def line(result: Result) -> str:
    """One result in one line of text."""
    detail = " ".join(result.detail.split())
    return f"{result.outcome:<8} {result.name} ({result.seconds:.1f} s){': ' if detail else ''}{detail}"


def summary(results: Sequence[Result]) -> str:
    """How many tests have ended in which way."""
    counts = Counter(result.outcome for result in results)
    told = [f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped") if counts[outcome]]
    return ", ".join(told) or "nothing was run"


def results(title: str, results: Sequence[Result], seconds: float) -> str:
    """A section with results."""
    lines = [
        f"| {result.outcome} | {_cell(result.name)} | {result.seconds:.1f} | {_cell(result.detail)} |"
        for result in results
    ]
    head = ["| | test | seconds | |", "|---|---|---|---|"] if lines else []
    return "\n".join([f"## {title}\n", f"{summary(results)}, in {seconds:.0f} s.\n", *head, *lines, ""])


def first_hour(outcome: FirstHour) -> str:
    """The section of the long tests: failures first."""
    order = {"failed": 0, "passed": 1, "skipped": 2}
    ordered = sorted(outcome.results, key=lambda result: order[result.outcome])
    section = results("The first hour on GPUs", ordered, outcome.seconds)
    return f"{section}\n{outcome.note}\n" if outcome.note else section


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
