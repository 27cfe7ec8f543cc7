"""All tables of a report at once: a run that has collapsed is in none of them, and sentences say where they hold."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.planted import run_of, study_of

from lightning_same.experiments.study.analysis import Analysis, analyse
from lightning_same.experiments.study.charts import Charts
from lightning_same.experiments.study.claims import claims
from lightning_same.experiments.study.collapse import collapsed
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.results import Results
from lightning_same.experiments.study.statistics import MOST_SEEDS
from lightning_same.experiments.study.summary import summary_text
from lightning_same.experiments.study.tables import claims_shown
from lightning_same.experiments.study.trends import NOTES_ON_CONDITION, NOTES_ON_RADIUS, sharpness_at_equal_loss, trends

SEEDS, EPOCHS = 4, 4
RHO, CONDITION = "sam.init_args.rho", "sam.init_args.condition"
CKPTS = (1, 2, 3, 4)


def ruled(method: str, seed: int, rule: str, swept: str = "", **arguments: Any) -> Run:
    settings = {f"sam.init_args.{swept}": arguments[swept]} if swept else {}
    name = "_".join([method, *map(str, arguments.values()), str(seed)])
    return Run(name, method, settings, seed, {"sam": {"class_path": rule, "init_args": arguments}})


def everything(rng: np.random.Generator) -> dict[str, float]:
    """One value of every metric that a table is made of."""
    names = [f"{part}/{name}" for part in ("train_eval", "val") for name in ("accuracy", "loss")]
    names += ["train_eval/clean_accuracy", "train_eval/noisy_accuracy", "sharpness/top_eigenvalue"]
    names += [f"grad_norm/{name}" for name in ("base", "perturbed", *(f"ckpt{k}" for k in CKPTS))]
    for k in CKPTS:
        names += [f"ckpt_effect/ckpt{k}/{loss}" for loss in ("clean", "noisy", "validation")]
        names += [f"ckpt_placebo_{match}/ckpt{k}/validation" for match in ("count", "norm")]
        names += [f"ckpt_{part}/ckpt{k}/noisy" for part in ("share", "dominated")]
    for where in "clean", "noisy":
        names += [f"ckpt_amplification/{where}_dominated/{of}" for of in ("clean", "noisy", "whole")]
    return {name: float(rng.uniform(0.4, 0.6)) for name in names}


def measured(dead: set[int]) -> tuple[Study, list[Run], Results]:
    """The runs of these seeds have collapsed; all of their values are far from those of the others."""
    runs = [
        run
        for seed in range(SEEDS)
        for run in (
            run_of("SGD", seed),
            *(ruled("SAM", seed, "SAM", "rho", rho=rho) for rho in (0.1, 0.2, 0.4)),
            *(ruled("SAME 1", seed, "SAME", "rho", ckpt=1, condition=2.0, rho=rho) for rho in (0.1, 0.2)),
            ruled("placebo", seed, "RandomGains", "rho", ckpt=1, condition=2.0, rho=0.1),
        )
    ]
    rng = np.random.default_rng(0)
    rows = []
    for run in runs:
        key = {"run": run.name, "method": run.method, "variant": run.variant, "seed": run.seed}
        for epoch in range(1, EPOCHS + 1):
            gone = run.seed in dead
            values = {name: value + 100 * gone for name, value in everything(rng).items()}
            # All radii of SAM memorise another share, and the loss falls.
            values["train_eval/noisy_accuracy"] += 0.5 - (run.config["sam"] or {}).get("init_args", {}).get("rho", 0.0)
            values["train_eval/loss"] -= 0.02 * epoch
            rows.append({**key, "epoch": epoch, **values, "ckpt_fraction/rest": 0.9 if gone else 0.1})
    tests = [
        {"run": run.name, "method": run.method, "variant": run.variant, "seed": run.seed}
        | {"last/test/accuracy": 0.5 + 100 * (run.seed in dead), "seconds_per_epoch": 1.0}
        for run in runs
    ]
    results = Results(pd.DataFrame(tests), pd.DataFrame([run.settings for run in runs]), pd.DataFrame(rows))
    return study_of(runs), runs, results


def analysed(dead: set[int]) -> Analysis:
    return analyse(*measured(dead))


def test_a_run_that_has_collapsed_is_in_no_table_that_compares() -> None:
    found = analysed({3})
    assert set(found.collapsed.values()) == {"rest 90%"}
    tables = found.tables(pd.DataFrame())
    compared = set(tables) - {"final", "summary", "grid", "times", "doses", "tests"}
    assert {"claims", "comparisons", "sensitivity", "equivalent", "interpolation", "best", "frontier"} <= compared
    assert {"trends", "mechanism", "amplification", "explanation", "controls", "sharpness"} <= compared
    for name in compared:
        assert tables[name]["seeds"].max() == SEEDS - 1, name
        assert tables[name].select_dtypes(float).abs().max().max() < 50, name
    assert found.doses[[f"ckpt{k}" for k in CKPTS]].max().max() < 3
    assert set(found.summary["seeds"]) == {SEEDS - 1}
    assert found.summary["val/accuracy/mean"].max() < 1


def test_where_all_runs_have_collapsed_nothing_is_compared() -> None:
    found = analysed(set(range(SEEDS)))
    assert len(found.collapsed) == len(found.final)
    for name, table in found.tables(pd.DataFrame()).items():
        assert "seeds" not in table or table["seeds"].max() == 0, name
    assert set(found.claims["verdict"]) == {"open"}


def test_a_loss_that_is_not_logged_says_nothing_of_a_network() -> None:
    runs = [run_of("SAM", 0)]
    curves = pd.DataFrame({"run": runs[0].name, "variant": "SAM", "seed": 0, "epoch": range(1, 5), "val/accuracy": 0.5})
    assert collapsed(runs, curves, 0.25) == {}
    assert collapsed(runs, curves.assign(**{"train/loss": np.nan}), 0.25) == {runs[0].name: "training loss nan"}


@pytest.mark.parametrize(("factor", "word"), [(2.0, "sharper"), (0.5, "flatter")])
def test_a_larger_eigenvalue_at_equal_loss_is_sharper(factor: float, word: str) -> None:
    rng = np.random.default_rng(0)
    runs = [
        run
        for seed in range(SEEDS)
        for run in (ruled("SAM", seed, "SAM", rho=0.1), ruled("SAME 1", seed, "SAME", ckpt=1, rho=0.1))
    ]
    rows = [
        {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch, "train_eval/loss": 2 - 0.1 * epoch}
        | {"sharpness/top_eigenvalue": 10 * (factor if run.method == "SAME 1" else 1) * rng.uniform(0.98, 1.02)}
        for run in runs
        for epoch in range(1, 4)
    ]
    (row,) = sharpness_at_equal_loss(study_of(runs), runs, pd.DataFrame(rows)).to_dict("records")
    assert row["ratio"] == pytest.approx(factor, rel=0.05)
    assert row["is"] == word


def test_accuracies_and_shares_have_their_axes_in_percent_and_nothing_else_has() -> None:
    study, runs, results = measured({3})
    charts = Charts(study, runs, results.curves, analyse(study, runs, results))
    found = {}
    for chart in (chart for group in charts.groups.values() for chart in group):
        for axis in (chart.spec[name] for name in ("x", "y") if name in chart.spec):
            found[axis["title"]] = bool(axis.get("percent"))
    assert {title for title, percent in found.items() if percent} == {
        "validation accuracy",
        "training accuracy, true labels",
        "accuracy on true labels",
        "memorised share of the wrong labels",
        "share of s from noisy samples",
    }
    assert {"validation loss", "effect on the validation loss", "norm of the gradient", "percentage points"} <= set(
        found
    )


# Sentences


def test_a_sentence_names_the_setting_at_which_it_holds() -> None:
    """SGD has no radius: it is beside SAM at each of SAM's."""
    runs = [
        run
        for seed in range(SEEDS)
        for run in (run_of("SGD", seed), *(ruled("SAM", seed, "SAM", "rho", rho=rho) for rho in (0.1, 0.2)))
    ]
    index = pd.MultiIndex.from_tuples([(run.variant, run.seed) for run in runs], names=["variant", "seed"])
    rng = np.random.default_rng(0)
    less = [0.5 - 0.1 * (run.variant == "SAM (rho 0.2)") + rng.normal(0, 0.001) for run in runs]
    means = pd.DataFrame({"train_eval/accuracy": less, "val/accuracy": less}, index)
    study = study_of(runs)
    made = claims(study, runs, {"early": means, "late": means}).assign(seeds_needed=np.nan)
    nothing = pd.DataFrame()
    shown = summary_text(study, runs, SimpleNamespace(claims=made, equivalent=nothing, best=nothing))  # type: ignore[arg-type]
    assert {line.partition(": training accuracy")[0] for line in shown[0].splitlines()} == {
        f"- **SGD, {phase} phase: {verdict}** at {setting}"
        for phase in ("early", "late")
        for verdict, setting in (("no effect", "rho 0.1"), ("useful pattern", "rho 0.2"))
    }


@pytest.fixture
def planted() -> tuple[Study, list[Run], pd.DataFrame]:
    runs = [run for seed in range(3) for run in (run_of("SAM", seed), run_of("other", seed))]
    rows = [
        {"variant": "other", "reference": reference, "phase": "late", "verdict": "harm", "claim": "", "seeds": 3}
        | {"training": value, "validation": -value}
        for reference, value in (("SAM", 0.02), ("SAM", -0.01), ("SAM", 0.04))
    ]
    return study_of(runs), runs, pd.DataFrame(rows)


def test_a_verdict_over_several_settings_has_the_range_of_its_differences(
    planted: tuple[Study, list[Run], pd.DataFrame],
) -> None:
    nothing = pd.DataFrame()
    study, runs, rows = planted
    found = SimpleNamespace(claims=rows, equivalent=nothing, best=nothing)
    (line,) = summary_text(study, runs, found)[0].splitlines()  # type: ignore[arg-type]
    assert line.endswith("training accuracy -1.0 to +4.0 points, validation accuracy -4.0 to +1.0 points.")


def test_what_the_radius_explains_is_counted(planted: tuple[Study, list[Run], pd.DataFrame]) -> None:
    study, runs, rows = planted
    explained = pd.DataFrame({"explained": ["yes", "no", "open", "yes", "open", "open"]})
    columns = ["method", "difference", "difference_low", "difference_high", "difference_is", "p"]
    ends = [
        ("SAM", np.nan, np.nan, np.nan, np.nan, np.nan),
        ("better", 0.02, 0.01, 0.03, "greater", 0.01),
        ("worse", -0.02, -0.03, -0.01, "less", 0.01),
        ("alike", 0.001, -0.01, 0.01, "similar", 0.01),
        ("unsure", 0.02, 0.01, 0.03, "greater", 0.2),
    ]
    found = SimpleNamespace(claims=rows, equivalent=explained, best=pd.DataFrame(ends, columns=columns))
    text = summary_text(study, runs, found)[0]  # type: ignore[arg-type]
    assert "another radius of SAM does as well: shown for 2, refuted for 1, open for 3 of 6 variants." in text
    assert text.splitlines()[-2:] == [
        "- Each at its best radius, better beside SAM: +2.0 [+1.0, +3.0] points of test accuracy.",
        "- Each at its best radius, worse beside SAM: -2.0 [-3.0, -1.0] points of test accuracy.",
    ]


def test_a_number_of_seeds_that_is_only_a_bound_has_a_plus() -> None:
    rows = [("SAM", "SAM", "late", 3, "", "open", "", "open", "open", n) for n in (MOST_SEEDS, MOST_SEEDS - 1, np.nan)]
    names = ["variant", "reference", "phase", "seeds", "claim", "training_is", "p", "validation_is", "verdict"]
    shown = claims_shown(pd.DataFrame(rows, columns=[*names, "seeds_needed"]), several=False, said="")
    assert shown["seeds needed"].tolist() == ["1000+", "999", ""]


# What the notes say of condition and radius


def notes_of(runs: list[Run]) -> dict[str, str]:
    index = pd.MultiIndex.from_tuples([(run.variant, run.seed) for run in runs], names=["variant", "seed"])
    metrics = ("train_eval/accuracy", "val/accuracy", "grad_norm/base", "sharpness/top_eigenvalue")
    late = pd.DataFrame(np.random.default_rng(0).uniform(0.4, 0.6, (len(runs), 4)), index, metrics)
    table = trends(study_of(runs, claims="notes"), runs, late)
    assert len(table) == 4
    assert ((table["notes"] == "") == (table["claim"] == "")).all()
    assert (trends(study_of(runs), runs, late)["notes"] == "").all()
    return {row["metric"]: row["notes"] for _, row in table.iterrows() if row["notes"]}


@pytest.mark.parametrize("ckpt", CKPTS)
def test_the_notes_speak_of_the_condition_on_checkpoint_1_alone(ckpt: int) -> None:
    runs = [
        run
        for seed in range(3)
        for run in (
            ruled("SAM", seed, "SAM", rho=0.1),
            *(ruled("SAME", seed, "SAME", "condition", ckpt=ckpt, condition=c, rho=0.1) for c in (2.0, 4.0)),
        )
    ]
    assert notes_of(runs) == (NOTES_ON_CONDITION if ckpt == 1 else {})


def test_the_notes_on_the_radius_are_of_the_reference() -> None:
    runs = [ruled("SAM", seed, "SAM", "rho", rho=rho) for seed in range(3) for rho in (0.1, 0.2, 0.4)]
    assert notes_of(runs) == NOTES_ON_RADIUS
