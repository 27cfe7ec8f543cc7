"""A copy of the tree in which `benchmarks/mutation.py` tries faults, and the processes that run the tests there."""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import reach
from faults import ROOT, Fault, checksum

REACHED = ROOT / "build" / "reached.json"
"""What the tests call, by file of tests, each with the file's checksum."""

IDLE, IDLING = 120, 3.0
"""Seconds on a clock and seconds of CPU: tests that compute no more than that wait for what will never come.

Not none at all, for threads that wait look up now and then.
"""

SLOW = "ranks"
"""Tests that use this fixture start processes, and run only where a planted fault asks for them."""

PRELOADED = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "lightning.pytorch",
    "torchmetrics",
    "hypothesis.stateful",
    "scipy.stats",
    "pandas",
    "pytest",
    "typing_extensions",
)


class Outcome(NamedTuple):
    """What the tests say of a fault.

    Attributes:
        how: ``found``, ``hang`` or ``survived``.
        by: the test that has found it.
        seconds: of CPU.
    """

    how: str
    by: str
    seconds: float


class Copy:
    """A copy of the tree in which faults are tried."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.log = folder / "log.txt"
        self.notes = folder / "notes.json"
        for part in ("lightning_same", "tests", "configs", "docs", "notebooks", "benchmarks"):
            shutil.copytree(ROOT / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for path in ROOT.iterdir():
            if path.is_file() and path.suffix in (".toml", ".md"):
                shutil.copy(path, self.root)

    def try_out(
        self, fault: Fault, tests: Sequence[str], limit: float, known: Collection[str] | None = None
    ) -> Outcome:
        """What the tests say of a fault.

        Args:
            fault: what to try.
            tests: those to run.
            limit: seconds of CPU that they may take.
            known: the names of all tests on one process, to run ``tests`` of them, in their order, and those that have
                other names by the fault. Default: ``tests`` may be files, and of several processes.
        """
        spent = 0.0
        place = self.root / fault.file
        whole = place.read_bytes()
        place.write_text(fault.put_into(whole.decode()))
        try:
            while tests:
                files = tests if known is None else reach.files_of_tests(tests)
                plugins = [] if known is None else [OneProcess(), reach.Chosen(tests, known)]
                how, by, seconds = self.outcome(files, limit, plugins)
                spent += seconds
                if how != "found":
                    return Outcome(how, by, spent)
                again, _, seconds = self.outcome([by], limit, [])
                spent += seconds
                if again != "survived":
                    return Outcome("found", by, spent)
                print(f"{by} fails now and then: not counted", flush=True)
                tests = tests[tests.index(by) + 1 :] if by in tests else []
        finally:
            place.write_bytes(whole)
        return Outcome("survived", "", spent)

    def outcome(self, tests: Sequence[str], limit: float, plugins: list[Any]) -> Outcome:
        """``found`` by a test that fails or crashes, ``hang`` or ``survived``."""
        code, seconds = self.tests(tests, limit, plugins)
        if code is None:
            return Outcome("hang", "", seconds)
        if code in (0, 5):  # Nothing failed; there was nothing to run.
            return Outcome("survived", "", seconds)
        said = self.failed()
        if not said and code > 0:
            raise SystemExit(f"pytest ended with {code}:\n{self.log.read_text()[-2000:]}")
        return Outcome("found", said[0] if said else tests[0], seconds)

    def failed(self) -> list[str]:
        """What the last run of tests said of those that failed."""
        log = self.log.read_text(errors="replace")
        return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", log, re.MULTILINE)

    def reached(self, files: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Of each test of these files, which functions it calls and how long it takes; kept by file in `REACHED`."""
        known = known_reached()
        states = {file: checksum(self.root / file) for file in files}
        left = [file for file in files if known.get(file, {}).get("state") != states[file]]
        sources = {path: path.read_text() for path in sorted((self.root / "lightning_same").rglob("*.py"))}
        for file in left:
            for path, code in sources.items():
                path.write_text(reach.with_notes(code, str(path.relative_to(self.root))))
            try:
                self.tests([file], 3600, [OneProcess()], notes=True)
            finally:
                for path, code in sources.items():
                    path.write_text(code)
            found = json.loads(self.notes.read_text())
            if found["failed"]:
                code, _ = self.tests(found["failed"], 3600, [OneProcess()])
                if code:
                    raise SystemExit(f"Without a fault the tests fail:\n{self.log.read_text()[-3000:]}")
                for test in found["failed"]:
                    found["tests"][test]["calls"] = [reach.EVERYTHING]
            known = known_reached() | {file: {"state": states[file], "tests": found["tests"]}}
            REACHED.parent.mkdir(exist_ok=True)
            write_whole(REACHED, json.dumps(known))
            print(f"{len(found['tests']):4} tests of {file}", flush=True)
        known = known_reached()
        return {test: seen for file in files for test, seen in known[file]["tests"].items()}

    def tests(
        self, tests: Sequence[str], limit: float, plugins: list[Any], *, notes: bool = False
    ) -> tuple[int | None, float]:
        """The exit code of pytest, None after a hang, and the CPU time that it took. The limit is one of CPU time."""
        child = os.fork()
        if child == 0:
            os._exit(self._run(tests, plugins, notes))
        spent, idle, looked = 0.0, 0, time.monotonic()
        try:
            while spent < limit and idle < IDLE:
                pid, status, usage = os.wait4(child, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
                time.sleep(0.1)
                if time.monotonic() - looked > 2:
                    # Not by the clock, which goes on while somebody has stopped all of this.
                    looked, idle, now = time.monotonic(), idle + 2, cpu_seconds(child)
                    if abs(now - spent) > IDLING:
                        spent, idle = now, 0
        finally:
            kill_group(child)
        _, _, usage = os.wait4(child, 0)
        return None, usage.ru_utime + usage.ru_stime

    def _run(self, tests: Sequence[str], plugins: list[Any], notes: bool) -> int:
        import pytest

        os.setpgrp()  # No session of its own, which Linux would give the share of a process that is not nice.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with self.log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(self.root)
        shutil.rmtree(".hypothesis", ignore_errors=True)  # Examples that another fault has failed on.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ["PYTHONPATH"] = str(self.root)
        sys.path[:0] = [str(self.root), str(self.root / "tests")]
        options = ["-q", "-p", "no:cacheprovider", "-n", "0", "--hypothesis-seed=0", "-W", "ignore"]
        plugins = [*plugins, Untimed()]
        if not notes:
            return int(pytest.main(["-x", *options, *tests], plugins=plugins))
        taken = reach.Notes()
        code = int(pytest.main([*options, *tests], plugins=[*plugins, taken]))
        self.notes.write_text(json.dumps({"tests": taken.tests, "failed": taken.failed}))
        return code


class OneProcess:
    """Leaves out the tests that start processes."""

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        items[:] = [item for item in items if SLOW not in getattr(item, "fixturenames", ())]


class Untimed:
    """Sets no clock for a test."""

    @staticmethod
    def pytest_timeout_set_timer(item: Any, settings: Any) -> bool:
        return True

    @staticmethod
    def pytest_timeout_cancel_timer(item: Any) -> bool:
        return True


def cpu_seconds(group: int) -> float:
    """What the processes of a group, and those that they have waited for, have computed so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def preload() -> None:
    """Import what all tests need and what is not of this repository."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)


def known_reached() -> dict[str, Any]:
    return json.loads(REACHED.read_text()) if REACHED.exists() else {}


def write_whole(path: Path, text: str) -> None:
    """Never a part of it, and nothing of another process's."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(path)
