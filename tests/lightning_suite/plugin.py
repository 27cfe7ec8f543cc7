"""The pytest plugin: each test with prepared fits, and without them where it fails."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from lightning_suite.differences import DIFFERENCES, MAY_PASS
from lightning_suite.fits import KINDS, Fits

FAILS_PLAIN = "fails in plain Lightning too"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lightning_suite")
    group.addoption("--kind", choices=KINDS, required=True, help="what is put under every fit")
    group.addoption("--outcomes", type=Path, required=True, help="file to which outcomes are added")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flaky(reruns): how often a test is run again that fails")
    config.pluginmanager.register(Suite(config), "lightning_suite")


class Suite:
    """One run of the tests with one kind of fits."""

    def __init__(self, config: pytest.Config) -> None:
        self.kind: str = config.getoption("--kind")
        self.file: Path = config.getoption("--outcomes")
        self.listed = {test: reason for test, (kinds, reason) in DIFFERENCES.items() if self.kind in kinds}
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.outcomes: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is known."""
        known = {each["test"] for each in self.outcomes if each["kind"] == self.kind or each["fits"] == 0}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
        items[:] = [item for item in items if item.nodeid not in known]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test, once more without prepared fits if it fails, and report what that means."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        flaky = item.get_closest_marker("flaky")
        for _ in range(1 + (flaky.kwargs.get("reruns", 1) if flaky else 0)):
            fits = KINDS[self.kind]()
            reports = run(item, nextitem, fits)
            outcome = outcome_of(reports)
            if outcome != "failed":
                break
        if outcome == "failed":
            # What has fitted nothing was plain Lightning.
            if not fits.count or outcome_of(run(item, nextitem, Fits())) == "failed":
                outcome = FAILS_PLAIN
            elif self.entry(item.nodeid) is not None:
                outcome = "listed"
            else:
                outcome = "differs"
        why = [reason_of(report) for report in reports if not report.passed]
        for report in reports:
            if report.failed and outcome in (FAILS_PLAIN, "listed"):
                reason = FAILS_PLAIN if outcome == FAILS_PLAIN else self.listed[str(self.entry(item.nodeid))]
                report.outcome, report.longrepr = "skipped", (str(item.path), 0, reason)
            item.ihook.pytest_runtest_logreport(report=report)
        self.keep({"test": item.nodeid, "kind": self.kind, "outcome": outcome, "fits": fits.count, "why": why})
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def entry(self, test: str) -> str | None:
        """The key under which a test is listed."""
        return next((key for key in self.listed if test == key or test.startswith((f"{key}[", f"{key}::"))), None)

    def keep(self, outcome: dict[str, Any]) -> None:
        self.outcomes.append(outcome)
        with self.file.open("a") as file:
            file.write(json.dumps(outcome) + "\n")

    def stale(self) -> list[str]:
        """Entries of the list whose tests have all passed."""
        outcomes: dict[str, set[str]] = {}
        for each in self.outcomes:
            key = self.entry(each["test"])
            if key is not None and each["kind"] == self.kind and self.listed[key] not in MAY_PASS:
                outcomes.setdefault(key, set()).add(each["outcome"])
        return [key for key, found in outcomes.items() if found == {"passed"}]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # All outcomes are known.
            session.exitstatus = pytest.ExitCode.OK
        if self.stale() or any(each["outcome"] == "differs" and each["kind"] == self.kind for each in self.outcomes):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        mine = [each for each in self.outcomes if each["kind"] == self.kind]
        counts = Counter(each["outcome"] for each in mine)
        fits = sum(each["fits"] for each in mine)
        terminalreporter.section(f"lightning_suite, {self.kind}")
        terminalreporter.line(f"{len(mine)} tests, {fits} fits: " + ", ".join(f"{n} {o}" for o, n in counts.items()))
        skipped = Counter(reason for each in mine if each["outcome"] == "skipped" for reason in each["why"])
        for reason, count in skipped.most_common():
            terminalreporter.line(f"{count} skipped: {reason}")
        for each in mine:
            if each["outcome"] == "differs":
                terminalreporter.line(f"DIFFERS {each['test']}: {' '.join(each['why'])}")
        for key in self.stale():
            terminalreporter.line(f"LISTED, BUT PASSES {key}")


def run(item: pytest.Item, nextitem: pytest.Item | None, fits: Fits) -> Sequence[pytest.TestReport]:
    """Run a test anew."""
    if hasattr(item, "_request"):
        item._initrequest()  # type: ignore[attr-defined]
    with fits.prepared():
        return runtestprotocol(item, nextitem=nextitem, log=False)


def outcome_of(reports: Sequence[pytest.TestReport]) -> str:
    outcomes = {report.outcome for report in reports}
    return next((outcome for outcome in ("failed", "skipped") if outcome in outcomes), "passed")


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped, or the last line of its error."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr).strip().splitlines()[-1][:300]
