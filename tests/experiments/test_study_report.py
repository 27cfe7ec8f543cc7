"""Reports of runs whose numbers are planted."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.planted import EPOCHS, report_on, run_of, same, study_of, write_runs
from support.ray_jobs import leave, planned

from lightning_same.experiments.study.claims import rule_text
from lightning_same.experiments.study.figures import curve_pictures
from lightning_same.experiments.study.plan import StudyError
from lightning_same.experiments.study.report import _in_short, write_report
from lightning_same.experiments.study.results import epochs, read_results
from lightning_same.experiments.study.tables import difference


def test_rows_between_two_epochs_belong_to_the_one_that_they_lead_to() -> None:
    metrics = pd.DataFrame(
        {
            "step": [0, 5, 9, 9, 15, 19],
            "epoch": [None, None, 0, 0, None, 1],
            "ckpt_fraction/ckpt1": [0.2, 0.4, None, None, 0.9, None],
            "val/accuracy": [None, None, 0.5, None, None, 0.7],
            "train/loss": [None, None, None, 2.0, None, 1.0],
            "never": [None] * 6,
        }
    )
    found = epochs(metrics)
    assert found["epoch"].tolist() == [1, 2]
    assert found["ckpt_fraction/ckpt1"].tolist() == pytest.approx([0.3, 0.9])
    assert found["val/accuracy"].tolist() == [0.5, 0.7]
    assert found["train/loss"].tolist() == [2, 1]
    assert "never" not in found


def test_a_report_holds_what_was_planted(tmp_path: Path) -> None:
    runs = [run_of(method, seed, sam=same(1)) for method in ("SAM", "SAME 1") for seed in range(3)]
    text = report_on(tmp_path, runs, description="What is *asked*.")
    # All differences are equal, which tells nothing of the next seed: no interval, no word, no verdict.
    assert "| SAME 1 | early | 3 | +0.0 open | +5.0 open | open |" in text
    assert (
        "| SAM | 3 | 51.0 ± 1.0 | 51.0 ± 1.0 | 60.0 ± 1.0 | 58.0 ± 0.0 | 68.0 ± 0.0 | 48.0 ± 0.0 | -2.0 ± 1.0 |" in text
    )
    assert "Wrong training labels: 40.0%." in text
    assert "6 of 6 runs are finished: 2 variants, seeds 0, 1, 2." in text
    table = pd.read_csv(tmp_path / "tables" / "claims.csv")
    assert table["validation"].tolist() == pytest.approx([0.05, 0.05])
    assert pd.read_csv(tmp_path / "tables" / "curves.csv").shape[0] == 6 * EPOCHS
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"curve-val-accuracy", "clean-against-memorised", "fractions-0", "fractions-1"} <= names
    assert {"accuracy-against-top_eigenvalue", "accuracy-against-base", "curve-grad_norm-base"} <= names


class Page(HTMLParser):
    """A report's page: the addresses it refers to, its open tags, and the data of its charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.depth = 0
        self.data = ""
        self.in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag not in ("img", "meta", "br", "hr", "link", "input")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.in_data = ("id", "charts") in attrs

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name == "src"]

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1
        self.in_data = False

    def handle_data(self, data: str) -> None:
        self.data += data if self.in_data else ""


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    runs = [run_of(method, seed) for method in ("SAM", "<b>|SGD", "</script><script>") for seed in range(2)]
    report_on(tmp_path, runs, description="</main><img src=x>")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.depth == 0
    assert all(address.startswith("#") for address in page.addresses)
    for address in page.addresses:
        assert f'<h2 id="{address[1:]}">' in text
    # The three of the page itself: what a method is called opens and closes nothing.
    assert text.count("</script>") == 3
    assert "<b>" not in text
    assert "<img src=x>" not in text
    assert "&lt;b&gt;|SGD" in text
    assert '<meta name="viewport"' in text
    assert len(text) < 6e6


@pytest.mark.usefixtures("undrawn")
def test_the_charts_have_what_was_measured(tmp_path: Path) -> None:
    rho = "sam.init_args.rho"
    runs = [run_of("SGD", seed) for seed in range(2)]
    runs += [run_of("SAM", seed, {rho: r}) for r in (0.1, 0.2) for seed in range(2)]
    report_on(tmp_path, runs)
    text = (tmp_path / "report.html").read_text()
    data = json.loads(Page(text).data)
    charts = {chart["file"]: chart for chart in data["charts"]}
    assert [style["name"] for style in data["legends"]["methods"]] == ["SGD", "SAM"]
    assert re.findall(r"<option.*?>(.*?)</option>", text) == ["rho 0.1", "rho 0.2"]
    curve = charts["curve-val-accuracy"]
    assert [(one["name"], one["setting"]) for one in curve["series"]] == [
        ("SGD", None),
        ("SAM", "rho 0.1"),
        ("SAM", "rho 0.2"),
    ]
    assert curve["series"][0]["x"] == list(range(1, EPOCHS + 1))
    assert curve["series"][0]["y"][:2] == [0.455, 0.465]  # the mean of two seeds
    assert curve["series"][0]["low"][0] == 0.45
    assert curve["series"][0]["high"][0] == 0.46
    assert curve["phases"] == [[1, 5, "early"], [16, 20, "late"]]
    # SGD is beside SAM at each of its radii.
    rows = {(one["name"], one["setting"]): one["rows"] for one in charts["differences-validation"]["series"]}
    assert set(rows) == {("SGD", "rho 0.1"), ("SGD", "rho 0.2")}
    assert [row["mean"] for row in rows["SGD", "rho 0.1"]] == [5, 5]
    assert charts["differences-validation"]["delta"] == 2  # points, as the differences
    assert "±2 points, counts as no difference" in text
    places = re.findall(r'data-chart="(\d+)"', text)
    assert places == [str(number) for number in range(len(data["charts"]))]


@pytest.mark.usefixtures("undrawn")
def test_one_measurement_makes_no_axes(tmp_path: Path) -> None:
    runs = [run_of(method, seed) for method in ("SAM", "SGD") for seed in range(2)]
    report_on(tmp_path, runs)
    for run in runs:
        path = tmp_path / "runs" / run.name / "metrics.csv"
        rows = pd.read_csv(path)
        rows.loc[1:, "sharpness/top_eigenvalue"] = np.nan
        rows.to_csv(path, index=False)
    write_report(study_of(runs), runs, tmp_path)
    names = [chart["file"] for chart in json.loads(Page((tmp_path / "report.html").read_text()).data)["charts"]]
    assert "curve-sharpness-top_eigenvalue" not in names
    assert {"curve-grad_norm-base", "accuracy-against-top_eigenvalue"} <= set(names)


@pytest.mark.usefixtures("undrawn")
def test_what_was_found_is_first_and_the_method_last(tmp_path: Path) -> None:
    runs = [run_of(method, seed, sam=same(1)) for method in ("SAM", "SAME 1") for seed in range(5)]
    write_runs(tmp_path, runs, lambda run: 0.4 + (0.05 + 0.002 * run.seed) * (run.method != "SAM"))
    write_report(study_of(runs, claims="notes"), runs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings[0] == "What was found"
    assert headings[-2:] == ["How it was tested", "About this report"]
    assert headings.index("Over training") < headings.index("Claims") < headings.index("At the end of training")
    assert "In 2 of 2 comparisons with SAM nothing is decided" in text
    assert "Of the 2 claims of the notes: 0 confirmed, 0 refuted, 2 open." in text
    assert "too few" not in text
    write_report(study_of(runs), [run for run in runs if run.seed < 2], tmp_path)
    assert "**2 seeds are too few.**" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_few_metrics_says_what_is_missing(tmp_path: Path) -> None:
    runs = [run_of(method, 0) for method in ("SGD", "SAM")]
    text = report_on(tmp_path, runs, monitors=False)
    assert "Neither was logged: add `GradientNormMonitor` or `SharpnessMonitor`" in text
    assert "Not logged: add `CheckpointFractionMonitor`" in text
    assert "| SGD | early | 1 | +0.0 open | +5.0 open | open |" in text


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_the_users_own_speaks_of_hypotheses(tmp_path: Path) -> None:
    runs = [run_of(method, seed, sam=same(1)) for method in ("SAM", "SAME 1") for seed in range(3)]
    own = report_on(tmp_path / "own", runs, claims={"SAME 1": {"late": ["less", "greater"]}})
    assert "## Hypotheses" in own
    assert "| the hypothesis | claim |" in own
    assert "less, greater | open" in own
    assert "notes" not in own
    assert "notes" not in report_on(tmp_path / "none", runs)
    assert "| the notes | claim |" in report_on(tmp_path / "notes", runs, claims="notes")


@pytest.mark.usefixtures("undrawn")
def test_rates_of_noise_that_differ_are_told_from_the_lowest_to_the_highest(tmp_path: Path) -> None:
    runs = [run_of("SAM", seed) for seed in range(3)]
    write_runs(tmp_path, runs, lambda run: 0.4)
    for run, rate in zip(runs, (0.3, 0.45, 0.2), strict=True):
        path = tmp_path / "runs" / run.name / "done.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"noise_rate": rate, "threads": 2}))
    write_report(study_of(runs, delta=0.035), runs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Wrong training labels: 20.0% to 45.0%." in text
    assert "- Threads of a run: 2." in text
    assert "| 0.810 ± 0.000 | 1.050 ± 0.000 |" in text  # losses are no percentages


def test_the_rule_is_told_with_the_studys_own_delta() -> None:
    for claims in None, "notes":
        text = rule_text(study_of([], delta=0.035, claims=claims))
        assert re.findall(r"±([\d.]+) points", text) == ["3.5"] * (4 if claims else 1)


def test_a_run_with_checksums_that_stopped_early_is_whole(tmp_path: Path) -> None:
    """It has one epoch of two, as its early stopping may have wanted it; nothing was cut off."""
    runs = planned("a", "b")
    for run in runs:
        leave(run, tmp_path)
    assert read_results(runs, tmp_path).notes == ()


@pytest.mark.usefixtures("undrawn")
def test_a_collapsed_run_is_counted_and_in_no_difference(tmp_path: Path) -> None:
    runs = [run_of(method, seed, sam=same(1)) for method in ("SAM", "SAME 1") for seed in range(4)]
    report_on(tmp_path, runs)
    path = tmp_path / "runs" / runs[-1].name / "metrics.csv"
    rows = pd.read_csv(path)
    pd.DataFrame(rows.assign(**{"ckpt_fraction/rest": 0.9, "val/accuracy": 0.1})).to_csv(path, index=False)
    write_report(study_of(runs), runs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "**1 of 8 runs have collapsed** by the late phase" in text
    assert f"`{runs[-1].name}` (rest 90%)" in text
    assert pd.read_csv(tmp_path / "tables" / "claims.csv")["seeds"].tolist() == [3, 3]
    assert pd.read_csv(tmp_path / "tables" / "claims.csv")["validation"].tolist() == pytest.approx([0.05, 0.05])
    final = pd.read_csv(tmp_path / "tables" / "final.csv", keep_default_na=False)
    assert final["collapsed"].tolist() == [""] * 7 + ["rest 90%"]
    summary = pd.read_csv(tmp_path / "tables" / "summary.csv").set_index("variant")
    assert summary["seeds"].to_dict() == {"SAM": 4, "SAME 1": 3}
    assert summary["collapsed"].to_dict() == {"SAM": 0, "SAME 1": 1}


def test_a_report_of_one_method_has_no_comparison(tmp_path: Path) -> None:
    text = report_on(tmp_path, [run_of("SGD", 0)])
    assert "No pair of runs is finished that could be compared with SAM." in text


@pytest.mark.usefixtures("undrawn")
def test_the_grid_has_the_radius_down_and_the_rest_across(tmp_path: Path) -> None:
    rho, condition = "sam.init_args.rho", "sam.init_args.condition"
    runs = [run_of("SGD", seed) for seed in range(2)]
    runs += [run_of("SAM", seed, {rho: r}) for r in (0.1, 0.2) for seed in range(2)]
    runs += [
        run_of("SAME 1", seed, {condition: c, rho: r}) for r in (0.1, 0.2) for c in (0.5, 2.0) for seed in range(2)
    ]
    text = report_on(tmp_path, runs)
    section = text.split("## Over what was swept")[1].split("##")[0]
    assert "| rho | SGD | SAM | SAME 1, condition 0.5 | SAME 1, condition 2.0 |" in section
    assert "| 0.1 |  | 50.50 (1.2500) | 50.50 (1.2500) | 50.50 (1.2500) |" in section
    assert "| none | 50.50 (1.2500) |  |  |  |" in section


def test_many_variants_are_drawn_a_few_to_a_picture(tmp_path: Path) -> None:
    runs = [run_of("SAM", 0)] + [run_of(f"method {k}", 0) for k in range(9)]
    report_on(tmp_path, runs, monitors=False)
    names = sorted(path.stem for path in (tmp_path / "figures").iterdir() if "val-accuracy" in path.stem)
    assert names == ["curve-val-accuracy-1", "curve-val-accuracy-2"]


@pytest.mark.usefixtures("undrawn")
def test_a_second_report_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    runs = [run_of("SAM", 0)] + [run_of(f"method {k}", 0) for k in range(9)]
    report_on(tmp_path, runs, monitors=False)
    before = (tmp_path / "report.md").read_bytes(), (tmp_path / "report.html").read_bytes()
    write_report(study_of(runs), runs, tmp_path)
    assert ((tmp_path / "report.md").read_bytes(), (tmp_path / "report.html").read_bytes()) == before
    write_report(study_of(runs), runs[:2], tmp_path)
    text = (tmp_path / "report.md").read_text()
    shown = set(re.findall(r"figures/([\w.-]+)\)", text))
    assert shown == {path.name for path in (tmp_path / "figures").iterdir()}
    assert "Not finished, and not in what follows: 8 of 10 runs of seed 0." in text


@pytest.mark.usefixtures("undrawn")
def test_many_unfinished_runs_are_counted_by_seed(tmp_path: Path) -> None:
    runs = [run_of(f"method {k}" if k else "SAM", seed) for seed in (0, 9, 10) for k in range(4)]
    report_on(tmp_path, runs, monitors=False)
    write_report(study_of(runs), runs[:5], tmp_path)
    (said,) = re.findall(r"^Not finished.*", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert said == "Not finished, and not in what follows: 3 of 4 runs of seed 9, 4 of 4 runs of seed 10."


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_broken_run_is_named(damage: str, tmp_path: Path) -> None:
    runs = [run_of("SAM", 0)]
    report_on(tmp_path, runs)
    path = tmp_path / "runs" / runs[0].name / "metrics.csv"
    path.unlink() if damage == "missing" else path.write_text("step\n")
    with pytest.raises(StudyError, match=r"Run 'SAM_0' counts as finished, but cannot be read: .* Remove .*SAM_0"):
        read_results(runs, tmp_path / "runs")


def test_a_metric_of_some_epochs_has_its_points_joined() -> None:
    rows = [
        {"run": f"{method} {seed}", "method": method, "variant": method, "seed": seed, "epoch": epoch}
        | {"sharpness/top_eigenvalue": float(epoch + seed) if epoch % 3 == 0 else np.nan}
        for method in ("SGD", "SAM")
        for seed in range(2)
        for epoch in range(1, 10)
    ]
    curves = pd.DataFrame(rows)
    gapped, whole = (curve_pictures(each, ["SAM"]) for each in (curves, curves.dropna()))
    assert [picture.svg for picture in gapped] == [picture.svg for picture in whole]


@pytest.mark.usefixtures("undrawn")
def test_the_page_shows_the_setting_of_the_most_methods_first(tmp_path: Path) -> None:
    rho = "sam.init_args.rho"
    runs = [run_of("SAM", seed, {rho: r}) for r in (0.1, 0.2, 0.3) for seed in range(2)]
    runs += [run_of("mine", seed, {rho: 0.1}) for seed in range(2)]
    report_on(tmp_path, runs)
    options = re.findall(r"<option([^>]*)>(rho [\d.]+)", (tmp_path / "report.html").read_text())
    assert options == [(" selected", "rho 0.1"), ("", "rho 0.2"), ("", "rho 0.3")]


def test_the_short_lists_name_a_reference_only_where_there_are_several() -> None:
    """SGD has no radius, so that it stands beside SAM at every one."""
    rows = [("SGD", "SAM (rho 0.1)"), ("SGD", "SAM (rho 0.2)"), ("SAME 1 (rho 0.1)", "SAM (rho 0.1)")]
    claims = pd.DataFrame(rows, columns=["variant", "reference"]).assign(phase="late", claim="", verdict="harm")
    assert _in_short(claims) == (
        "- **harm**: SGD / SAM (rho 0.1) (late), SGD / SAM (rho 0.2) (late), SAME 1 (rho 0.1) (late)"
    )


def test_a_difference_that_is_rounded_to_nothing_has_no_minus() -> None:
    row = pd.Series({"training": -0.0004, "training_low": -0.03, "training_high": -0.0003})
    assert difference(row, "training") == "+0.0 [-3.0, +0.0]"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("methods", [("SAM",), ("SAM", "SAME 1")])
def test_a_study_all_of_whose_runs_have_collapsed_is_reported(methods: tuple[str, ...], tmp_path: Path) -> None:
    """It ended in an error that nobody had foreseen, after all the training."""
    runs = [run_of(method, seed, sam=same(1)) for method in methods for seed in range(2)]
    write_runs(tmp_path, runs, lambda run: 0.4)
    for run in runs:
        path = tmp_path / "runs" / run.name / "metrics.csv"
        pd.read_csv(path).assign(**{"train_eval/loss": np.nan, "ckpt_fraction/rest": 0.9}).to_csv(path, index=False)
    write_report(study_of(runs, claims="notes"), runs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"**{len(runs)} of {len(runs)} runs have collapsed** by the late phase" in text
    assert ("Of the 2 claims of the notes: 0 confirmed, 0 refuted, 2 open." in text) == (len(methods) == 2)


@pytest.mark.usefixtures("undrawn")
def test_many_collapsed_runs_are_counted_by_variant(tmp_path: Path) -> None:
    runs = [run_of(method, seed, sam=same(1)) for method in ("SAM", "SAME 1") for seed in range(6)]
    report_on(tmp_path, runs)
    for run in runs[5:]:
        path = tmp_path / "runs" / run.name / "metrics.csv"
        pd.DataFrame(pd.read_csv(path).assign(**{"ckpt_fraction/rest": 0.9})).to_csv(path, index=False)
    write_report(study_of(runs), runs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "interval or mean: 1 of 6 of SAM, 6 of 6 of SAME 1 (`tables/final.csv` says why)." in text
    assert f"`{runs[-1].name}`" not in text
