"""All tables of a report at once: a run that has collapsed is in none of them, and sentences say where they hold."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.planted import run_of, study_of

from lightning_same.experiments.study.analysis import Analysis, analyse
from lightning_same.experiments.study.claims import claims
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.results import Results
from lightning_same.experiments.study.summary import summary_text
from lightning_same.experiments.study.trends import NOTES_ON_CONDITION, NOTES_ON_RADIUS, trends

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


def analysed(collapsed: set[int]) -> Analysis:
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
            dead = run.seed in collapsed
            values = {name: value + 100 * dead for name, value in everything(rng).items()}
            # All radii of SAM memorise another share, and the loss falls.
            values["train_eval/noisy_accuracy"] += 0.5 - (run.config["sam"] or {}).get("init_args", {}).get("rho", 0.0)
            values["train_eval/loss"] -= 0.02 * epoch
            rows.append({**key, "epoch": epoch, **values, "ckpt_fraction/rest": 0.9 if dead else 0.1})
    tests = [
        {"run": run.name, "method": run.method, "variant": run.variant, "seed": run.seed}
        | {"last/test/accuracy": 0.5 + 100 * (run.seed in collapsed), "seconds_per_epoch": 1.0}
        for run in runs
    ]
    results = Results(pd.DataFrame(tests), pd.DataFrame([run.settings for run in runs]), pd.DataFrame(rows))
    return analyse(study_of(runs), runs, results)


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
