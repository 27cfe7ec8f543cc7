"""The published studies: their tables are what their curves say, by an independent way, and their pages are whole."""

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.paths import ROOT

from lightning_same.experiments.study.plan import Study

STUDIES = ROOT / "docs" / "studies"
PUBLISHED = sorted(path.parent.parent.name for path in STUDIES.glob("*/tables/curves.csv.xz"))


@pytest.fixture(scope="module")
def recompute() -> dict[str, Any]:
    return runpy.run_path(str(STUDIES / "recompute.py"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tables_are_what_the_curves_say(recompute: dict[str, Any], name: str) -> None:
    compared, wrong = recompute["check"](STUDIES / name)
    assert compared > 20
    assert wrong == []


def test_a_number_that_the_curves_do_not_carry_is_found(recompute: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(STUDIES / "mechanism", tmp_path / "mechanism", ignore=shutil.ignore_patterns("figures"))
    table = tmp_path / "mechanism" / "tables" / "mechanism.csv"
    rows = pd.read_csv(table)
    rows.loc[3, "validation"] += 1e-3
    rows.to_csv(table, index=False)
    _, wrong = recompute["check"](tmp_path / "mechanism")
    assert len(wrong) == 1
    assert wrong[0].startswith("mechanism/mechanism.csv, row 3, validation: ")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_figure_and_table_of_a_published_report_is_there(name: str) -> None:
    report = (STUDIES / name / "report.md").read_text()
    figures = re.findall(r"\]\((figures/[^)]*)\)", report)
    assert figures
    assert [figure for figure in figures if not (STUDIES / name / figure).exists()] == []
    runs = pd.read_csv(STUDIES / name / "tables" / "runs.csv")
    assert re.search(rf"^{len(runs)} of \d+ runs", report, re.MULTILINE)
    assert runs["configuration"].is_unique


def test_the_page_says_how_many_runs_the_shipped_studies_have() -> None:
    page = (ROOT / "docs" / "study.md").read_text()
    rows = re.findall(r"^\| (`\w+\.yaml`(?:, `\w+\.yaml`)*) \|.*\| ([\d, ]+?)(?: each)? \|$", page, re.MULTILINE)
    said = {}
    for names, counts in rows:
        files, numbers = re.findall(r"`(\w+\.yaml)`", names), [int(number) for number in counts.split(", ")]
        said |= dict(zip(files, numbers * len(files) if len(numbers) == 1 else numbers, strict=True))
    assert len(said) == 14
    assert said == {name: len(Study.read(ROOT / "configs" / "studies" / name).runs) for name in said}
