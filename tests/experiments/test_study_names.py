"""Whatever the user has named stands in the report as it is, and is nothing but text there."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from support.planted import EPOCHS, run_of, study_of
from typing_extensions import override

from lightning_same.experiments.study.escape import as_paragraph, escaped
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.report import write_report
from lightning_same.experiments.study.results import epochs, read_results

LIVE = [
    "![x](http://example.org/x.png)",
    "<img src=http://example.org/x.png>",
    "<script>alert(1)</script>",
    "[link](http://example.org)",
    "http://example.org",
    "www.example.org",
    "**bold** _slanted_ `code` ~~struck~~",
    "a | b \\| c",
    "# heading",
    "- item",
    "1. item",
    "12) items",
    "> quoted",
    "&lt;b&gt;",
    "$x^2$ $\\frac{$",
    "_hidden",
    "__init__",
    "SAM_2",
    "a * b * c",
]


class Page(HTMLParser):
    """The tags of a page, the addresses in it, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    @override
    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(markdown: str, **options: Any) -> Page:
    return Page(MarkdownIt("commonmark", {"html": True, **options}).enable("table").render(markdown))


@pytest.mark.parametrize("text", LIVE)
def test_an_escaped_text_reads_as_it_was_and_does_nothing(text: str) -> None:
    """Rendered with HTML allowed, as some readers of report.md do."""
    page = rendered(as_paragraph(text))
    assert page.text.strip() == text
    assert page.tags == {"p"}
    cell = rendered("| a |\n| --- |\n| " + escaped(text).replace("|", "\\|") + " |")
    assert page.addresses == cell.addresses == []
    assert text.replace("\\|", "|") in cell.text.replace("\\|", "|")
    assert cell.tags == {"table", "thead", "tbody", "tr", "th", "td"}


def test_a_text_of_several_lines_stays_in_its_row() -> None:
    assert escaped("a\n\n# b\n| c |") == "a # b | c |"


# Reports


def write_runs(folder: Path, runs: list[Run], **extra: Any) -> None:
    for number, run in enumerate(runs):
        place = folder / "runs" / run.name
        place.mkdir(parents=True)
        at = np.arange(EPOCHS)
        rows: dict[str, Any] = {"epoch": at, "step": 10 * at + 9}
        for name in "val/accuracy", "train_eval/accuracy", "train_eval/clean_accuracy", "train_eval/noisy_accuracy":
            rows[name] = 0.3 + 0.01 * at + 0.001 * number
        rows |= {f"ckpt_fraction/{name}": 0.2 for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")}
        pd.DataFrame(rows | extra).to_csv(place / "metrics.csv", index=False)
        tested = {"test/accuracy": 0.5 + 0.01 * run.seed, "test/loss": 1.25}
        outcome = {"test": {"last": tested}, "best_epoch": 3, "noise_rate": 0.4, "seconds_per_epoch": 1.5}
        (place / "done.json").write_text(json.dumps({**outcome, "digest": run.digest}))


def report(folder: Path, runs: list[Run], **options: Any) -> tuple[str, Page]:
    write_runs(folder, runs)
    write_report(study_of(runs, **options), runs, folder)
    return (folder / "report.md").read_text(), Page((folder / "report.html").read_text())


def test_names_and_descriptions_are_text_in_the_report(tmp_path: Path) -> None:
    """A picture of another server's was loaded, and HTML stood as it was in report.md."""
    names = [name for name in LIVE if "|" not in name]
    runs = [
        Run(f"{number}_seed={seed}", name, {}, seed, {"sam": None})
        for number, name in enumerate(names)
        for seed in (0, 1)
    ]
    text, page = report(tmp_path, runs, reference=names[0], name=names[1], description=names[2] + "\n\n# more")
    for name in names:
        assert name in page.text, name
    assert not page.tags & {"img", "s", "del", "blockquote"}
    assert all(re.fullmatch(r"#[a-z-]+", address) for address in page.addresses)
    assert (tmp_path / "report.html").read_text().count("</script>") == 3  # data, Vega and page.js
    assert "<img" not in text
    assert "<script" not in text
    live = rendered(text)
    assert set(live.addresses) == {f"figures/{path.name}" for path in (tmp_path / "figures").iterdir()}
    assert "script" not in live.tags
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) > 2 for row in rows)


@pytest.mark.usefixtures("undrawn")
def test_swept_lists_mappings_and_texts_are_reported(tmp_path: Path) -> None:
    """They ended in a traceback after all the training."""
    key = "sam.init_args.ckpt"
    values: list[Any] = [1, [1, 3], {"a": [1]}, None, True, "a | *b*", 2.5]
    runs = [
        Run(f"{number}_seed={seed}", "SAME", {key: value}, seed, {"sam": {"class_path": "SAME"}})
        for number, value in enumerate(values)
        for seed in (0, 1)
    ]
    runs += [run_of("SAM", seed) for seed in (0, 1)]
    text, page = report(tmp_path, runs)
    section = text.split("## Over what was swept")[1].split("##")[0]
    rows = [
        re.split(r" (?<!\\)\| ?", line)[0].removeprefix("| ") for line in section.splitlines() if line.startswith("|")
    ]
    assert rows[0] == "ckpt"
    cells = {"1", "\\[1, 3\\]", "{a: \\[1\\]}", "null", "true", "a \\| \\*b\\*", "2.5", "none"}
    assert set(rows[2:]) == cells
    assert len(rows) == 2 + len(cells)
    assert "SAME (ckpt [1, 3])" in page.text


@pytest.mark.usefixtures("undrawn")
def test_equal_last_names_of_settings_have_a_column_each(tmp_path: Path) -> None:
    """One of them was lost in the grid, and what differed in it was pooled."""
    ours, theirs = "sam.class_path", "model.class_path"
    runs = [
        Run(f"{a}{b}{seed}", "SAM", {ours: a, theirs: b}, seed, {"sam": {"class_path": a}})
        for a in ("SAM", "SAME")
        for b in ("A", "B")
        for seed in (0, 1)
    ]
    write_runs(tmp_path, runs)
    results = read_results(runs, tmp_path / "runs")
    assert list(results.settings.columns) == [ours, theirs]
    assert results.settings.drop_duplicates().to_numpy().tolist() == [
        ["SAM", "A"],
        ["SAM", "B"],
        ["SAME", "A"],
        ["SAME", "B"],
    ]
    write_report(study_of(runs), runs, tmp_path)
    grid = pd.read_csv(tmp_path / "tables" / "grid.csv")
    assert len(grid) == 4
    assert list(grid.columns[:2]) == [theirs, "column"]  # Down goes the option that was swept last.


def test_a_hidden_name_is_in_the_legend_and_math_is_text(tmp_path: Path) -> None:
    runs = [run_of(name, 0) for name in ("SAM", "_hidden", "$\\frac{$")]
    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text
        report(tmp_path, runs)
    svg = (tmp_path / "figures" / "curve-val-accuracy.svg").read_text()
    assert re.search(r">\s*_hidden\s*<", svg)
    assert "$\\frac{$" in svg


@pytest.mark.usefixtures("undrawn")
def test_metrics_of_the_users_own_do_not_take_the_reports_columns(tmp_path: Path) -> None:
    runs = [run_of("SAM", seed) for seed in (0, 1)]
    write_runs(tmp_path, runs, **{"seed": 9.0, "method": 1.0, "gap": 3.0, "last/test/accuracy": 7.0, "word": "text"})
    curves = read_results(runs, tmp_path / "runs").curves
    assert set(curves["seed"]) == {0, 1}
    assert set(curves["logged/seed"]) == {9.0}
    assert "word" not in curves
    write_report(study_of(runs), runs, tmp_path)
    assert "50.5" in (tmp_path / "report.md").read_text()


def test_an_epoch_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unable to parse string"):
        epochs(pd.DataFrame({"epoch": ["one", "two"], "step": [1, 2], "x": [1.0, 2.0]}))
