"""Claims: planted ones are confirmed, opposite ones refuted, and few are wrong among many."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.planted import EPOCHS, run_of, same, study_of

from lightning_same.experiments.study.claims import COLUMNS, NOTES, VERDICTS, claims, judged, seeds_needed, sensitivity
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.statistics import Differences, phase_means, seeds_for_difference

METRICS = {"training": "train_eval/accuracy", "validation": "val/accuracy"}
SIZE = {"less": -0.05, "similar": 0.0, "greater": 0.05}
OPPOSITE = {"less": "greater", "similar": "greater", "greater": "less"}
METHODS = {f"SAME {k}": same(k) for k in (1, 2, 3, 4)}


def runs_of(seeds: int, methods: dict[str, Any] = METHODS) -> list[Run]:
    return [run_of(method, seed, sam=sam) for method, sam in {"SAM": None, **methods}.items() for seed in range(seeds)]


def means_of(runs: list[Run], planted: dict[Any, float], rng: np.random.Generator, noise: float) -> dict[str, Any]:
    """Phase means, as if of curves: what a seed adds to all methods, what is planted, and noise."""
    index = pd.MultiIndex.from_tuples([(run.variant, run.seed) for run in runs], names=["variant", "seed"])
    found = {}
    for phase in "early", "late":
        columns = {}
        for name, metric in METRICS.items():
            common = {seed: rng.normal(0, 0.1) for seed in {run.seed for run in runs}}
            columns[metric] = [
                0.5 + common[run.seed] + planted.get((run.method, phase, name), 0.0) + rng.normal(0, noise)
                for run in runs
            ]
        found[phase] = pd.DataFrame(columns, index=index)
    return found


def planted_notes(change: Any = lambda word: word) -> dict[Any, float]:
    """The effects that the notes claim, or what ``change`` makes of them."""
    return {
        (f"SAME {k}", phase, name): SIZE[change(word)]
        for (k, phase), pair in NOTES.items()
        for name, word in zip(METRICS, pair, strict=True)
    }


def outcomes(planted: dict[Any, float], studies: int, seeds: int = 8, noise: float = 0.006) -> list[list[str]]:
    runs, rng = runs_of(seeds), np.random.default_rng(0)
    study = study_of(runs, claims="notes", delta=0.02)
    return [claims(study, runs, means_of(runs, planted, rng, noise))["claim"].tolist() for _ in range(studies)]


def test_what_the_notes_claim_is_confirmed_where_it_is_planted() -> None:
    found = outcomes(planted_notes(), 30)
    assert np.mean([outcome == "confirmed" for study in found for outcome in study]) > 0.95
    assert not any("refuted" in study for study in found)


def test_the_opposite_of_the_notes_is_refuted() -> None:
    found = outcomes(planted_notes(OPPOSITE.__getitem__), 30)
    assert np.mean([outcome == "refuted" for study in found for outcome in study]) > 0.95
    assert not any("confirmed" in study for study in found)


@pytest.mark.parametrize(
    "planted",
    [
        planted_notes(),
        planted_notes(OPPOSITE.__getitem__),
        {},  # nothing differs
        {key: 0.02 * np.sign(effect) for key, effect in planted_notes().items()},  # at the edge of what counts
    ],
    ids=["as claimed", "the opposite", "nothing", "at delta"],
)
def test_at_most_one_study_in_twenty_has_a_wrong_claim(planted: dict[Any, float]) -> None:
    """Wrong: confirmed where an observation is not so, or refuted where both are. The rate varies by 1.3%."""
    truth = {}
    for (k, phase), pair in NOTES.items():
        effects = [planted.get((f"SAME {k}", phase, name), 0.0) for name in METRICS]
        holds = [
            effect > 0 if word == "greater" else effect < 0 if word == "less" else abs(effect) <= 0.02
            for effect, word in zip(effects, pair, strict=True)
        ]
        # A difference of less than delta may be called either.
        matters = [word == "similar" or abs(effect) >= 0.02 for effect, word in zip(effects, pair, strict=True)]
        truth[k, phase] = (all(holds), all(h and m for h, m in zip(holds, matters, strict=True)))
    order = [(k, phase) for k in (1, 2, 3, 4) for phase in ("early", "late")]
    wrong = 0
    for study in outcomes(planted, 250, seeds=6, noise=0.015):
        wrong += any(
            (outcome == "confirmed" and not truth[key][0]) or (outcome == "refuted" and truth[key][1])
            for key, outcome in zip(order, study, strict=True)
        )
    assert wrong / 250 <= 0.05 + 2 * 0.014


def test_a_claim_is_open_as_often_as_the_power_says() -> None:
    """Two observations, each shown with a power of 80%: both in at least 64% of studies of one claim."""
    rng = np.random.default_rng(0)
    seeds = seeds_for_difference(0.02, 0.02)
    found = []
    for _ in range(600):
        pair = [Differences(values, 0.02) for values in rng.normal(0.02, 0.02, (2, seeds))]
        found.append(judged(*pair, ("greater", "greater")))
    confirmed = np.mean([outcome == "confirmed" and p < 0.05 for outcome, p in found])
    assert 0.58 < confirmed < 0.72
    assert np.mean([outcome == "refuted" and p < 0.05 for outcome, p in found]) < 0.06  # at delta: in 5% at most


def differences(mean: float, spread: float = 0.002) -> Differences:
    return Differences([mean - spread, mean, mean + spread], 0.02)


@pytest.mark.parametrize(
    ("training", "validation", "claimed", "expected"),
    [
        (0.05, 0.05, ("greater", "greater"), "confirmed"),
        (-0.05, 0.05, ("greater", "greater"), "refuted"),  # one of them is enough
        (0.05, 0.05, ("greater", "similar"), "refuted"),
        (0.05, 0.01, ("greater", "similar"), "confirmed"),  # beyond zero, and yet within delta
        (0.05, 0.01, ("greater", "greater"), "confirmed"),
        (0.05, 0.0001, ("greater", "greater"), "refuted"),  # shown to be none where one was claimed
    ],
)
def test_what_confirms_and_what_refutes(
    training: float, validation: float, claimed: tuple[str, str], expected: str
) -> None:
    outcome, p = judged(differences(training), differences(validation), claimed)
    assert (outcome, p < 0.05) == (expected, True)


def test_the_verdicts_are_those_of_the_rule() -> None:
    words = ("less", "similar", "greater")
    missing = {(training, validation) for training in words for validation in words} - VERDICTS.keys()
    assert not missing
    assert VERDICTS["greater", "less"] == VERDICTS["greater", "similar"] == "noisy fitting"
    assert VERDICTS["less", "less"] == "underfitting"
    assert VERDICTS["similar", "less"] == "harm"
    assert VERDICTS["similar", "similar"] == "no effect"
    assert sum(verdict == "useful pattern" for verdict in VERDICTS.values()) == 4


def test_the_table_has_the_columns_and_corrects_for_all_its_rows() -> None:
    """One variant differs by what would be a verdict alone; thirty more rows, and it is open."""
    rng = np.random.default_rng(3)
    planted = {("SAME 1", "late", "training"): -0.03, ("SAME 1", "late", "validation"): 0.03}
    few, many = runs_of(4, {"SAME 1": same(1)}), runs_of(4, {f"SAME {k}": same(1) for k in range(1, 17)})
    means = means_of(many, planted, rng, 0.004)
    tables = [claims(study_of(runs, claims="notes"), runs, means) for runs in (few, many)]
    assert list(tables[0].columns)[: len(COLUMNS)] == COLUMNS
    late = [table[(table["variant"] == "SAME 1") & (table["phase"] == "late")].iloc[0] for table in tables]
    assert late[0]["training_is"] == late[1]["training_is"] == "less"
    assert [row["verdict"] for row in late] == ["useful pattern", "open"]
    assert late[0]["training"] == late[1]["training"]


def test_rows_without_a_verdict_count_for_the_correction_and_rows_without_an_interval_do_not() -> None:
    """Holm's: the smallest p-value times the number of rows."""
    rng = np.random.default_rng(0)
    runs = [*runs_of(4, {f"SAME {k}": same(1) for k in range(1, 7)}), run_of("one seed", 0)]
    effects = {("SAME 1", "late", "training"): -0.03, ("SAME 1", "late", "validation"): 0.03}
    means = means_of(runs, effects, rng, 0.002)
    for phase, table in means.items():
        for variant in {run.variant for run in runs} - {"SAM"}:
            if (variant, phase) != ("SAME 1", "late"):  # all others differ so much among themselves that they are open
                rows = table.loc[variant].to_numpy()  # pandas 2.2 would align them by their index, and write NaN
                table.loc[variant] = rows + rng.uniform(-0.5, 0.5, rows.shape)
    study = study_of(runs)
    found = claims(study, runs, means).set_index(["variant", "phase"])
    assert found["verdict"].to_dict() == {
        key: "useful pattern" if key == ("SAME 1", "late") else "open" for key in found.index
    }
    late = means["late"]
    p = max(
        Differences((late.loc["SAME 1", metric] - late.loc["SAM", metric]).to_numpy(), study.delta).p(word)
        for metric, word in zip(METRICS.values(), ("less", "greater"), strict=True)
    )
    assert found.loc[("SAME 1", "late"), "p"] == pytest.approx(12 * p)
    assert found.loc[("one seed", "late")].isna()["p"]


def test_claims_are_the_notes_or_the_studys_own_and_else_there_are_none() -> None:
    methods = {"SAME 1": same(1), "less": same(1) | {"init_args": {"ckpt": 1, "condition": 0.5}}, "two": same(1)}
    methods["two"] = {"class_path": "SAME", "init_args": {"ckpt": [1, 3]}}
    methods["by default"] = {"class_path": "lightning_same.SAME"}
    methods["gains"] = {"class_path": "CheckpointGains", "init_args": {"ckpt3": 2.0}}
    runs = runs_of(3, methods)
    means = means_of(runs, {}, np.random.default_rng(0), 0.01)

    def said(**options: Any) -> dict[tuple[str, str], tuple[str, str]]:
        table = claims(study_of(runs, **options), runs, means)
        rows = zip(table["variant"], table["phase"], table["notes_training"], table["notes_validation"], strict=True)
        return {(variant, phase): (a, b) for variant, phase, a, b in rows if a}

    notes = said(claims="notes")
    assert notes["SAME 1", "late"] == notes["by default", "late"] == ("greater", "greater")
    assert notes["gains", "late"] == ("less", "less")
    assert {variant for variant, _ in notes} == {"SAME 1", "by default", "gains"}
    assert said() == {}
    assert said(claims={"two": {"late": ["similar", "greater"]}}) == {("two", "late"): ("similar", "greater")}
    assert said(claims="notes", reference="two") == {}  # the notes compare with SAM


def test_the_seeds_needed_are_those_that_decide_both_observations() -> None:
    """And none are needed where both are decided."""
    runs = runs_of(4, {"SAME 1": same(1)})
    index = pd.MultiIndex.from_tuples([(run.variant, run.seed) for run in runs], names=["variant", "seed"])
    apart = np.array([-1.5, -0.5, 0.5, 1.5])
    for training, validation in (0.02, 0.03), (0.03, 0.02):
        spreads = dict(zip(METRICS.values(), (training, validation), strict=True))
        means = {metric: [0.5] * 4 + (0.5 + spread * apart).tolist() for metric, spread in spreads.items()}
        decided = {metric: [0.5] * 4 + (0.9 + 0.01 * apart).tolist() for metric in spreads}
        phases = {"early": pd.DataFrame(means, index), "late": pd.DataFrame(decided, index)}
        study = study_of(runs)
        assert set(claims(study, runs, phases)["training_is"]) == {"open", "greater"}
        alone = [Differences(spread * apart, study.delta).seeds_needed or 0 for spread in spreads.values()]
        early, late = seeds_needed(study, runs, phases)
        assert early == max(alone) > min(alone) > 4
        assert np.isnan(late)


def test_seeds_are_paired_and_those_of_one_method_alone_do_not_count() -> None:
    runs = [run_of("SAM", seed) for seed in range(4)] + [run_of("SAME 1", seed, sam=same(1)) for seed in (3, 1, 2, 7)]
    planted = {("SAME 1", "late", "training"): -0.05, ("SAME 1", "late", "validation"): 0.05}
    table = claims(study_of(runs), runs, means_of(runs, planted, np.random.default_rng(0), 1e-4))
    late = table.set_index("phase").loc["late"]
    assert late["seeds"] == 3
    assert late["training_high"] - late["training_low"] < 0.01
    assert late["verdict"] == "useful pattern"


def test_variants_are_compared_at_equal_settings() -> None:
    key, other = "sam.init_args.rho", "sam.init_args.condition"
    settings = [("SGD", {}), ("SAM", {key: 0.1}), ("SAM", {key: 0.2}), ("SAME", {key: 0.1, other: 2})]
    runs = [
        run_of(method, seed, own) for seed in range(2) for method, own in [*settings, ("SAME", {key: 0.2, other: 3})]
    ]
    table = claims(study_of(runs), runs, means_of(runs, {}, np.random.default_rng(0), 0.01))
    assert list(dict.fromkeys(zip(table["variant"], table["reference"], strict=True))) == [
        ("SGD", "SAM (rho 0.1)"),
        ("SGD", "SAM (rho 0.2)"),
        ("SAME (rho 0.1, condition 2)", "SAM (rho 0.1)"),
        ("SAME (rho 0.2, condition 3)", "SAM (rho 0.2)"),
    ]


def test_an_effect_of_the_first_epochs_alone_is_seen_by_the_cut() -> None:
    """Lower in the first two epochs by far, and not at all after them: levels differ, the rest does not."""
    rng = np.random.default_rng(0)
    runs = runs_of(6, {"SAME 1": same(1)})
    rows = [
        {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
        | {
            metric: 0.5 + 0.02 * epoch - 0.3 * (epoch <= 2 and run.method != "SAM") + rng.normal(0, 0.003)
            for metric in METRICS.values()
        }
        for run in runs
        for epoch in range(1, EPOCHS + 1)
    ]
    curves = pd.DataFrame(rows)
    words = sensitivity(study_of(runs), runs, curves).set_index("measure")["training_is"].to_dict()
    assert words == {
        "levels": "less",
        "levels without the first 2 epochs": "similar",
        "increase per epoch": "greater",
    }
    assert phase_means(curves, 0.25, late=False).shape[0] == len(runs)


@pytest.mark.parametrize(("share", "word"), [(0.97, "similar"), (1.03, "open")])
def test_slopes_are_similar_if_they_lead_no_further_apart_than_delta_by_the_phases_end(share: float, word: str) -> None:
    """Half the slopes are larger and half are smaller by as much; the 90% interval is that share of delta."""
    runs = runs_of(6, {"SAME 1": same(1)})
    study = study_of(runs)
    length = round(study.early * EPOCHS)
    # Half the interval of six values of +-1: 2.015 sqrt(6 / 5) / sqrt(6).
    apart = share * study.delta / (length - 1) / (2.015 / np.sqrt(5))
    rows = [
        {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
        | dict.fromkeys(METRICS.values(), 0.5 + (run.method != "SAM") * (-1) ** run.seed * apart * epoch)
        for run in runs
        for epoch in range(1, EPOCHS + 1)
    ]
    words = sensitivity(study, runs, pd.DataFrame(rows)).set_index("measure")["training_is"]
    assert words["increase per epoch"] == word
