"""Which functions of the package each test runs, so that a fault is tried with those alone that can find it.

The tests run once on code in which each function notes that it was called; `benchmarks/mutation.py` does so, and keeps
what it has learned of a file of tests until that file changes.
"""

import ast
import builtins
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

NOTES = "functions_that_were_called"
"""The name of a set among the builtins, so that the noted code needs no import."""

EVERYTHING = "*"
"""In place of a function, of a test that does not pass on code with notes, or that starts programs, which note nothing
here."""


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of a module, also inside classes and functions, by its qualified name."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else prefix.rstrip(".")
        if isinstance(node, ast.FunctionDef):
            yield name, node
        yield from functions(node, f"{name}." if name else "")


def with_notes(code: str, file: str) -> str:
    """The code, whose functions note that they were called."""
    tree = ast.parse(code)
    for name, node in list(functions(tree)):
        # Also in processes of the tests' own, where nobody asks for the notes.
        note = f"vars(__import__('builtins')).setdefault({NOTES!r}, set()).add({f'{file}:{name}'!r})"
        node.body.insert(ast.get_docstring(node) is not None, ast.parse(note).body[0])
    return ast.unparse(ast.fix_missing_locations(tree))


def around(code: str, start: int, stop: int) -> str | None:
    """The innermost function that holds lines of a module, its decorators included.

    None outside of all, and in a function that is called once for all tests, for it keeps what it has returned.
    """
    found = None
    for name, node in functions(ast.parse(code)):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if first <= start and stop <= (node.end_lineno or 0):
            cached = any("cache" in ast.unparse(decorator) for decorator in node.decorator_list)
            found = None if cached else name
    return found


class Notes:
    """Of each test, what it has called and the seconds that it took."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self.shared: set[str] = set()
        setattr(builtins, NOTES, set())

    def pytest_collection_finish(self) -> None:
        """What a file calls as it is imported is for all its tests."""
        self.shared = set(getattr(builtins, NOTES))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """So is what a fixture calls that is made once for several."""
        called = getattr(builtins, NOTES)
        before = set(called)
        called.clear()
        programs = os.times().children_user
        result = yield
        if os.times().children_user > programs:
            called.add(EVERYTHING)
        if fixturedef.scope != "function":
            self.shared |= called
        called |= before
        return result  # type: ignore[return-value]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        called = getattr(builtins, NOTES)
        called.clear()
        start, programs = time.process_time(), os.times().children_user
        result = yield
        if os.times().children_user > programs:
            called.add(EVERYTHING)
        self.tests[item.nodeid] = {
            "calls": sorted(called | self.shared),
            "seconds": round(time.process_time() - start, 2),
        }
        return result  # type: ignore[return-value]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)


class Chosen:
    """Runs these of the known tests in this order, and then unknown ones, whose names a fault has changed."""

    def __init__(self, tests: Sequence[str], known: Collection[str]) -> None:
        self.places = {test: place for place, test in enumerate(tests)}
        self.known = known

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.places or item.nodeid not in self.known),
            key=lambda item: self.places.get(item.nodeid, len(self.places)),
        )


def files_of_tests(tests: Sequence[str]) -> list[str]:
    """The files in which tests are, each once, in the order of the tests."""
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


def files_of(root: Path, tests: Sequence[str]) -> list[str]:
    """The files of tests in folders, in the order of the folders."""
    files: list[str] = []
    for test in tests:
        place = root / test
        found = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
        files += [str(path.relative_to(root)) for path in found]
    return list(dict.fromkeys(files))
