"""The pages of docs/ are true and up to date."""

import ast
import re

import pytest
from support.conformance import CASES, FEATURES
from support.conformance_page import HEAD
from support.paths import DOCS, ROOT, TESTS


def test_the_page_of_guarantees_names_tests_that_are_there() -> None:
    page = (DOCS / "guarantees.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_conformance_matrix_is_whole() -> None:
    page = (DOCS / "conformance.md").read_text()
    assert page.startswith(HEAD)
    cells = [cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.split("|")[2:-1]]
    cells = [cell for cell in cells if cell.startswith("=") or "differ" in cell]
    assert len(cells) == 2 * len(CASES) + 2 * len(FEATURES)
    assert all(cell.startswith("=") for cell in cells)


@pytest.mark.parametrize("folder", ["docs", "benchmarks"])
def test_scripts_take_nothing_from_the_tests(folder: str) -> None:
    ours = {path.stem for path in TESTS.iterdir()}
    assert {"support", "rules"} < ours
    scripts = list((ROOT / folder).rglob("*.py"))
    assert len(scripts) >= 3
    for script in scripts:
        if script.name != "mutation.py":  # It runs the tests, on code with faults put in.
            assert "tests" not in re.findall(r"[\"'](\w+)[\"']", script.read_text()), f"{script} names tests/"
        for node in ast.walk(ast.parse(script.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert ours.isdisjoint(name.partition(".")[0] for name in names), f"{script} imports {names}"
