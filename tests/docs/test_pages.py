"""The pages of docs/ are true and up to date."""

import ast
import re

import pytest
from support.conformance import CASES, FEATURES, OF_OTHER_RULES
from support.conformance_page import HEAD, RULES_HEAD
from support.conformance_rules import OTHER_RULES
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


def test_the_conformance_matrix_has_the_other_rules() -> None:
    page = (DOCS / "conformance.md").read_text()
    assert RULES_HEAD in page
    overflowing = sum(case.precision.endswith("overflows") for case in OF_OTHER_RULES)
    for rule in OTHER_RULES:
        one, two = re.findall(rf"^\| `{rule}` \|(.*)\|$", page, re.MULTILINE)
        alone, beside = ([float(cell) for cell in row.split("|")] for row in (one, two))
        assert (len(alone), len(beside)) == (len(OF_OTHER_RULES), len(OF_OTHER_RULES) - overflowing)
        assert max(alone) < 1e-6


@pytest.mark.parametrize("folder", ["docs", "benchmarks"])
def test_scripts_take_nothing_from_the_tests(folder: str) -> None:
    ours = {path.stem for path in TESTS.iterdir()}
    assert {"support", "rules"} < ours
    scripts = list((ROOT / folder).rglob("*.py"))
    assert len(scripts) >= 3
    for script in scripts:
        if script.name not in ("faults.py", "trials.py"):  # They run the tests, on code with faults put in.
            assert "tests" not in re.findall(r"[\"'](\w+)[\"']", script.read_text()), f"{script} names tests/"
        for node in ast.walk(ast.parse(script.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert ours.isdisjoint(name.partition(".")[0] for name in names), f"{script} imports {names}"
