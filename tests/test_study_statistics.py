"""Intervals that cover, verdicts that follow the rule, and reports of runs whose numbers are planted."""

import base64
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lightning_same.experiments.study.figures import curve_pictures
from lightning_same.experiments.study.plan import Run, Study, StudyError
from lightning_same.experiments.study.report import write_report
from lightning_same.experiments.study.results import epochs, read_results
from lightning_same.experiments.study.statistics import Interval, comparisons, interval, phase_means, verdict

EPOCHS = 20
PHASE = 0.25  # five epochs


# Intervals


def test_the_interval_is_students() -> None:
    """Against the table of t: 4.303 for 2 degrees of freedom, 2.776 for 4."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert 2 - found.low == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    values = [0.1, -0.4, 0.3, 0.9, 0.2]
    half = 2.776 * float(np.std(values, ddof=1)) / math.sqrt(5)
    assert interval(values)[1:] == pytest.approx((0.22 - half, 0.22 + half), rel=1e-3)


def test_too_few_seeds_have_no_interval_and_no_sign() -> None:
    for values in [], [3.0]:
        found = interval(values)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.sign == 0


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_cover_at_the_nominal_rate(seeds: int) -> None:
    """Of 2000 means of normal differences; the standard deviation of the rate is 0.5%."""
    rng = np.random.default_rng(seeds)
    truth = 0.03
    draws = rng.normal(truth, 0.02, (2000, seeds))
    covered = np.mean([found.low <= truth <= found.high for found in map(interval, draws.tolist())])
    assert abs(covered - 0.95) < 0.015


# Verdicts

HIGHER, LOWER, NEITHER = Interval(1, 0.5, 1.5), Interval(-1, -1.5, -0.5), Interval(0.4, -0.1, 0.9)


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (LOWER, HIGHER, "useful pattern"),
        (HIGHER, HIGHER, "useful pattern"),
        (HIGHER, LOWER, "noisy fitting"),
        (LOWER, LOWER, "underfitting"),
        (NEITHER, HIGHER, "undecided"),
        (NEITHER, LOWER, "undecided"),
        (HIGHER, NEITHER, "undecided"),
        (LOWER, NEITHER, "undecided"),
        (NEITHER, NEITHER, "undecided"),
        (Interval(1, 0, 2), HIGHER, "undecided"),  # an end at zero includes zero
        (interval([]), HIGHER, "undecided"),
    ],
)
def test_verdicts_follow_the_rule(train: Interval, validation: Interval, expected: str) -> None:
    assert verdict(train, validation) == expected


# Synthetic studies


def run_of(method: str, seed: int, settings: dict[str, Any] | None = None, sam: Any = None) -> Run:
    name = "_".join([method, *(f"{key}={value}" for key, value in (settings or {}).items()), str(seed)])
    if method == "SAM":
        sam = {"class_path": "SAM"}
    return Run(name.replace(" ", "-"), method, settings or {}, seed, {"sam": sam})


def study_of(runs: list[Run], **options: Any) -> Study:
    planned = {"name": "planted", "description": "", "reference": "SAM", "early": PHASE, "late": PHASE, "threads": 1}
    return Study(**(planned | options), runs=runs)


def curves_of(runs: list[Run], effect: dict[str, Any], rng: np.random.Generator, noise: float = 0.01) -> pd.DataFrame:
    """Accuracies of 0.6 plus what the seed adds to all methods, plus the planted effects of (phase, metric)."""
    common = {seed: rng.normal(0, 0.05) for seed in {run.seed for run in runs}}
    rows = []
    for run in runs:
        own = {(phase, name): rng.normal(0, noise) for phase in ("early", "late") for name in ("train", "validation")}
        for epoch in range(1, EPOCHS + 1):
            phase = "early" if epoch <= 5 else "late" if epoch > 15 else "middle"
            row: dict[str, Any] = {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
            for name, metric in ("train", "train_eval/accuracy"), ("validation", "val/accuracy"):
                planted = effect.get(run.method, {}).get((phase, name), 9.0 if phase == "middle" else 0.0)
                row[metric] = 0.6 + common[run.seed] + own.get((phase, name), 0) + planted
            rows.append(row)
    return pd.DataFrame(rows)


def same(ckpt: int) -> dict[str, Any]:
    return {"class_path": "SAME", "init_args": {"ckpt": ckpt, "condition": 2.0}}


PLANTED = {
    "noisy": {("early", "train"): 0.2, ("early", "validation"): -0.2},
    "useful": {("late", "train"): -0.2, ("late", "validation"): 0.2},
    "both": {("late", "train"): 0.2, ("late", "validation"): 0.2},
    "neither": {("early", "train"): -0.2, ("early", "validation"): -0.2},
}


def test_planted_effects_are_found_in_their_phase_and_nowhere_else() -> None:
    runs = [run_of(method, seed) for method in ("SAM", *PLANTED) for seed in range(5)]
    found = comparisons(study_of(runs), runs, curves_of(runs, PLANTED, np.random.default_rng(0), noise=0.002))
    verdicts = {(row["variant"], row["phase"]): row["verdict"] for _, row in found.iterrows()}
    assert verdicts == {
        ("noisy", "early"): "noisy fitting",
        ("noisy", "late"): "undecided",
        ("useful", "early"): "undecided",
        ("useful", "late"): "useful pattern",
        ("both", "early"): "undecided",
        ("both", "late"): "useful pattern",
        ("neither", "early"): "underfitting",
        ("neither", "late"): "undecided",
    }
    row = found[(found["variant"] == "noisy") & (found["phase"] == "early")].iloc[0]
    assert row["train"] == pytest.approx(0.2, abs=0.01)
    assert row["seeds"] == 5


def test_over_200_studies_intervals_cover_and_nothing_is_seldom_something() -> None:
    """The rate has a standard deviation of 1.5%; a verdict needs two intervals that miss, at 5% each."""
    runs = [run_of(method, seed) for method in ("SAM", "same", "other") for seed in range(3)]
    planted = {"other": {("late", "train"): -0.03, ("late", "validation"): 0.02}}
    rng = np.random.default_rng(1)
    covered, decided = [], []
    for _ in range(200):
        found = comparisons(study_of(runs), runs, curves_of(runs, planted, rng))
        nothing = found[found["variant"] == "same"]
        decided += (nothing["verdict"] != "undecided").tolist()
        late = found[(found["variant"] == "other") & (found["phase"] == "late")].iloc[0]
        covered += [
            late["train_low"] <= -0.03 <= late["train_high"],
            late["validation_low"] <= 0.02 <= late["validation_high"],
        ]
    assert 0.92 < np.mean(covered) < 0.98
    assert np.mean(decided) < 0.02


def test_seeds_are_paired() -> None:
    """The seeds differ by far more than the methods, which pairs do not see; seeds of one method alone do not count."""
    runs = [run_of("SAM", seed) for seed in range(4)] + [run_of("useful", seed) for seed in (3, 1, 2, 7)]
    curves = curves_of(runs, PLANTED, np.random.default_rng(0), noise=1e-4)
    late = comparisons(study_of(runs), runs, curves).set_index("phase").loc["late"]
    assert late["seeds"] == 3
    assert late["train_high"] - late["train_low"] < 0.01
    assert late["verdict"] == "useful pattern"


def test_phases_average_their_share_of_the_epochs() -> None:
    curves = pd.DataFrame({"run": "r", "variant": "v", "seed": 0, "epoch": range(1, 11), "x": np.arange(10.0)})
    for share, early, late in (0.25, 0.5, 8.5), (0.01, 0, 9), (0.5, 2, 7):
        assert phase_means(curves, share, late=False)["x"].item() == early
        assert phase_means(curves, share, late=True)["x"].item() == late


def test_what_the_notes_say_stands_beside_the_verdict_where_they_say_it() -> None:
    methods = {f"SAME {k}": same(k) for k in (1, 2, 3, 4)}
    methods["less"] = {"class_path": "lightning_same.SAME", "init_args": {"ckpt": 1, "condition": 0.5}}
    methods["two"] = {"class_path": "SAME", "init_args": {"ckpt": [1, 3]}}
    methods["by default"] = {"class_path": "lightning_same.SAME"}
    runs = [run_of(method, seed, sam=sam) for method, sam in {"SAM": None, **methods}.items() for seed in range(3)]
    planted = {"SAME 2": PLANTED["noisy"], "SAME 3": PLANTED["useful"]}
    found = comparisons(study_of(runs), runs, curves_of(runs, planted, np.random.default_rng(0), noise=0.002))
    said = {(row["variant"], row["phase"]): (row["notes_say"], row["agrees"]) for _, row in found.iterrows()}
    assert said["SAME 1", "early"] == said["by default", "early"] == ("useful pattern", "open")
    assert said["SAME 2", "early"] == ("noisy fitting", "yes")
    assert said["SAME 2", "late"] == ("useful pattern", "open")
    assert said["SAME 3", "late"] == ("underfitting", "no")
    assert said["SAME 4", "late"] == ("useful pattern", "open")
    assert said["less", "early"] == said["two", "early"] == ("", "")
    others = comparisons(study_of(runs, reference="two"), runs, curves_of(runs, {}, np.random.default_rng(0)))
    assert set(others["notes_say"]) == {""}


def test_variants_are_compared_at_equal_settings() -> None:
    key, other = "sam.init_args.rho", "sam.init_args.condition"
    runs = [
        run_of(method, seed, settings)
        for seed in range(2)
        for method, settings in (
            ("SGD", {}),
            ("SAM", {key: 0.1}),
            ("SAM", {key: 0.2}),
            ("SAME", {key: 0.1, other: 2}),
            ("SAME", {key: 0.2, other: 3}),
        )
    ]
    found = comparisons(study_of(runs), runs, curves_of(runs, {}, np.random.default_rng(0)))
    assert list(dict.fromkeys(zip(found["variant"], found["reference"], strict=True))) == [
        ("SGD", "SAM (rho 0.1)"),
        ("SGD", "SAM (rho 0.2)"),
        ("SAME (rho 0.1, condition 2)", "SAM (rho 0.1)"),
        ("SAME (rho 0.2, condition 3)", "SAM (rho 0.2)"),
    ]


# Reading


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


# Reports


def write_runs(folder: Path, runs: list[Run], level: Callable[[Run], float], monitors: bool = True) -> None:
    for number, run in enumerate(runs):
        place = folder / "runs" / run.name
        place.mkdir(parents=True)
        at = np.arange(EPOCHS)
        rows = {
            "epoch": at,
            "step": 10 * at + 9,
            "val/accuracy": level(run) + 0.01 * at,
            "val/loss": 1 - 0.01 * at,
            "train_eval/accuracy": 0.2 + 0.02 * at,
            "train_eval/clean_accuracy": 0.3 + 0.02 * at,
            "train_eval/noisy_accuracy": 0.1 + 0.02 * at,
            "train_eval/loss": 2 - 0.05 * at,
        }
        if monitors:
            rows |= {f"ckpt_fraction/{name}": 0.2 for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")}
            rows |= {"sharpness/top_eigenvalue": 5.0 + number, "grad_norm/base": 1 / (1 + at)}
        pd.DataFrame(rows).to_csv(place / "metrics.csv", index=False)
        tested = {"test/accuracy": 0.5 + 0.01 * run.seed, "test/loss": 1.25}
        outcome = {"test": {"last": tested, "best": tested}, "best_epoch": 3, "noise_rate": 0.4}
        outcome |= {"seconds_per_epoch": 1.5, "digest": run.digest}
        (place / "done.json").write_text(json.dumps(outcome))


def report_on(folder: Path, runs: list[Run], monitors: bool = True, **options: Any) -> str:
    write_runs(folder, runs, lambda run: 0.4 + 0.05 * (run.method != "SAM") + 0.01 * run.seed, monitors)
    write_report(study_of(runs, **options), runs, folder)
    return (folder / "report.md").read_text()


def test_a_report_holds_what_was_planted(tmp_path: Path) -> None:
    runs = [run_of(method, seed, sam=same(1)) for method in ("SAM", "SAME 1") for seed in range(3)]
    text = report_on(tmp_path, runs, description="What is *asked*.")
    assert "| SAME 1 | early | undecided | +0.0 [+0.0, +0.0] | +5.0 [+5.0, +5.0] | useful pattern | open |" in text
    assert (
        "| SAM | 3 | 51.0 ± 1.0 | 51.0 ± 1.0 | 60.0 ± 1.0 | 58.0 ± 0.0 | 68.0 ± 0.0 | 48.0 ± 0.0 | -2.0 ± 1.0 |" in text
    )
    assert "Wrong training labels: 40.0%." in text
    assert "6 of 6 runs are finished: 2 variants, seeds 0, 1, 2." in text
    table = pd.read_csv(tmp_path / "tables" / "verdicts.csv")
    assert table["validation"].tolist() == pytest.approx([0.05, 0.05])
    assert pd.read_csv(tmp_path / "tables" / "curves.csv").shape[0] == 6 * EPOCHS
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"curve-val-accuracy", "clean-against-memorised", "fractions-0", "fractions-1"} <= names
    assert {"accuracy-against-top_eigenvalue", "accuracy-against-base", "curve-grad_norm-base"} <= names


class Page(HTMLParser):
    """The addresses that a page refers to, and its open tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag not in ("img", "meta", "br", "hr", "link")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name == "src"]

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    runs = [run_of(method, seed) for method in ("SAM", "<b>|SGD") for seed in range(2)]
    report_on(tmp_path, runs)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.depth == 0
    start = "data:image/svg+xml;base64,"
    assert len(page.addresses) == len(list((tmp_path / "figures").iterdir()))
    for address in page.addresses:
        assert address.startswith(start)
        assert b"<svg" in base64.b64decode(address.removeprefix(start))
    assert "<b>" not in text
    assert "&lt;b&gt;|SGD" in text
    assert '<meta name="viewport"' in text


def test_a_report_of_few_metrics_says_what_is_missing(tmp_path: Path) -> None:
    runs = [run_of(method, 0) for method in ("SGD", "SAM")]
    text = report_on(tmp_path, runs, monitors=False)
    assert "Neither was logged: add `GradientNormMonitor` or `SharpnessMonitor`" in text
    assert "Not logged: add `CheckpointFractionMonitor`" in text
    assert "| SGD | early | undecided | +0.0 | +5.0 |" in text


def test_a_report_of_one_method_has_no_comparison(tmp_path: Path) -> None:
    text = report_on(tmp_path, [run_of("SGD", 0)])
    assert "No pair of runs is finished that could be compared with SAM." in text


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
    assert "Not finished, and not in what follows: `method-1_0`" in text


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
