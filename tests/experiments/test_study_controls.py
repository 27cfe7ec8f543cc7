"""What the radius explains, trends, single gains, doses, placebos, sharpness at equal loss and collapsed runs."""

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.planted import run_of, same, study_of

import lightning_same
from lightning_same.experiments.study.collapse import collapsed
from lightning_same.experiments.study.controls import controls, is_control
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.radius import (
    best_radius,
    decreasing,
    equivalent_radius,
    frontier,
    interpolation,
)
from lightning_same.experiments.study.tables import doses
from lightning_same.experiments.study.trends import factors, sharpness_at_equal_loss, trends
from lightning_same.experiments.study.variants import gains_of

RHO = "sam.init_args.rho"
RADII = (0.05, 0.1, 0.2, 0.4)
SEEDS = 6
CKPTS = ("ckpt1", "ckpt2", "ckpt3", "ckpt4")


def configured(method: str, rule: str | None, seed: int, swept: bool = True, **arguments: Any) -> Run:
    sam = None if rule is None else {"class_path": rule, "init_args": arguments}
    settings = {RHO: arguments["rho"]} if swept and "rho" in arguments else {}
    name = "_".join([method, *map(str, arguments.values()), str(seed)])
    return Run(name, method, settings, seed, {"sam": sam})


def table(runs: list[Run], values: Any) -> pd.DataFrame:
    """Late means of (variant, seed), each by ``values(run)``."""
    index = pd.MultiIndex.from_tuples([(run.variant, run.seed) for run in runs], names=["variant", "seed"])
    return pd.DataFrame([values(run) for run in runs], index=index)


def radius_study(extra: float, validation: float) -> tuple[list[Run], pd.DataFrame]:
    """SAM memorises 1 - rho and validates 0.5 + rho; the other acts like ``extra`` more radius, plus ``validation``."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(SEEDS):
        runs += [configured("SGD", None, seed), *(configured("SAM", "SAM", seed, rho=rho) for rho in RADII)]
        runs += [configured("other", "SAME", seed, ckpt=1, rho=rho) for rho in (0.1, 0.2)]
    common = {seed: rng.normal(0, 0.05) for seed in range(SEEDS)}

    def values(run: Run) -> dict[str, float]:
        rho = (run.config["sam"] or {"init_args": {"rho": 0.0}})["init_args"]["rho"]
        acts = rho + (extra if run.method == "other" else 0.0)
        more = validation if run.method == "other" else 0.0
        return {
            "train_eval/noisy_accuracy": 1 - acts,
            "train_eval/accuracy": 0.9 - acts,
            "val/accuracy": 0.5 + acts + more + common[run.seed] + rng.normal(0, 0.002),
        }

    return runs, table(runs, values)


def test_a_variant_that_is_a_larger_radius_is_explained_by_it() -> None:
    runs, late = radius_study(extra=0.07, validation=0.0)
    found = equivalent_radius(study_of(runs), runs, late)
    assert found["variant"].tolist() == ["other (rho 0.1)", "other (rho 0.2)"]
    assert found["equivalent_rho"].tolist() == pytest.approx([0.17, 0.27])
    assert found["validation"].tolist() == pytest.approx([0, 0], abs=0.005)
    assert found["explained"].tolist() == ["yes", "yes"]
    assert set(found["matched_on"]) == {"memorised"}
    without = equivalent_radius(study_of(runs), runs, late.drop(columns=["train_eval/noisy_accuracy"]))
    assert set(without["matched_on"]) == {"training"}
    assert without["equivalent_rho"].tolist() == pytest.approx([0.17, 0.27])


def test_what_is_within_delta_is_explained_also_where_it_can_be_told_from_zero() -> None:
    runs, late = radius_study(extra=0.07, validation=0.01)
    found = equivalent_radius(study_of(runs), runs, late)
    assert found["validation_is"].tolist() == ["greater", "greater"]
    assert found["explained"].tolist() == ["yes", "yes"]


def test_what_is_better_than_any_radius_is_not_explained() -> None:
    runs, late = radius_study(extra=0.07, validation=0.06)
    found = equivalent_radius(study_of(runs), runs, late)
    assert found["validation"].tolist() == pytest.approx([0.06, 0.06], abs=0.005)
    assert found["validation_is"].tolist() == ["greater", "greater"]
    assert found["explained"].tolist() == ["no", "no"]


def test_a_variant_that_no_radius_equals_is_counted_and_not_judged() -> None:
    runs, late = radius_study(extra=0.5, validation=0.0)
    found = equivalent_radius(study_of(runs), runs, late)
    assert found["outside"].tolist() == [SEEDS, SEEDS]
    assert found["explained"].tolist() == ["open", "open"]


def test_where_every_radius_does_as_much_none_is_an_equal() -> None:
    runs, late = radius_study(extra=0.07, validation=0.0)
    late["train_eval/noisy_accuracy"] = 1.0
    found = equivalent_radius(study_of(runs), runs, late)
    assert found["outside"].tolist() == [SEEDS, SEEDS]
    assert found["explained"].tolist() == ["open", "open"]


@pytest.mark.parametrize("curved", [0.0, 0.5])
def test_the_radii_that_are_left_out_show_how_far_the_interpolation_errs(curved: float) -> None:
    """Validation over radius is a line, which is found again, or a parabola, of which its chord falls short."""
    runs, late = radius_study(extra=0.0, validation=0.0)
    for run in runs:
        rho = (run.config["sam"] or {"init_args": {"rho": 0.0}})["init_args"]["rho"]
        late.loc[(run.variant, run.seed), "val/accuracy"] -= curved * rho**2
    found = interpolation(study_of(runs), runs, late)
    assert found["left_out"].tolist() == [0.05, 0.1, 0.2]
    assert found["equivalent_rho"].tolist() == pytest.approx([0.05, 0.1, 0.2])
    # At 0.2, between 0.1 and 0.4: 0.04 beside (0.01 * 2 + 0.16) / 3.
    assert found["validation"].tolist()[-1] == pytest.approx(curved * 0.02, abs=0.003)
    assert found["validation_is"].tolist()[-1] == ("greater" if curved else "similar")


def test_the_frontier_has_a_point_per_method_and_radius() -> None:
    runs, late = radius_study(extra=0.1, validation=0.0)
    found = frontier(study_of(runs), runs, late)
    assert list(zip(found["method"], found["rho"], strict=True)) == [
        ("SGD", 0.0),
        *(("SAM", rho) for rho in RADII),
        ("other", 0.1),
        ("other", 0.2),
    ]
    assert found["memorised"].tolist() == pytest.approx([1.0, 0.95, 0.9, 0.8, 0.6, 0.8, 0.7])


def test_the_frontier_has_methods_of_one_radius_too() -> None:
    runs, late = radius_study(extra=0.1, validation=0.0)
    kept = [run for run in runs if run.method != "other" or run.settings[RHO] == 0.2]
    fixed = [configured("fixed", "SAME", seed, swept=False, ckpt=2, rho=0.3) for seed in range(SEEDS)]
    more = table(fixed, lambda run: {"train_eval/noisy_accuracy": 0.25, "val/accuracy": 0.75})
    found = frontier(study_of([*fixed, *kept]), [*fixed, *kept], pd.concat([late, more]))
    points = list(zip(found["method"], found["rho"], found["memorised"], strict=True))
    assert points[0] == ("fixed", 0.3, 0.25)
    assert points[-1] == ("other", 0.2, pytest.approx(0.7))
    assert [method for method, *_ in points] == ["fixed", "SGD", *["SAM"] * len(RADII), "other"]


def test_without_a_radius_to_choose_there_is_no_frontier() -> None:
    runs = [configured(name, "SAME", seed, ckpt=1, rho=0.2) for name in ("SAM", "other") for seed in range(SEEDS)]
    late = table(runs, lambda run: {"val/accuracy": 0.75})
    assert frontier(study_of(runs), runs, late).empty


def test_the_best_radius_is_chosen_on_validation_and_judged_on_the_test() -> None:
    runs, late = radius_study(extra=0.0, validation=0.0)
    rows = [
        {"variant": run.variant, "seed": run.seed, "last/test/accuracy": 0.9 if run.settings.get(RHO) == 0.1 else 0.6}
        for run in runs
    ]
    found = best_radius(study_of(runs), runs, late, pd.DataFrame(rows)).set_index("method")
    assert found.loc["SAM", "chosen"] == f"0.4 ({SEEDS})"  # best on validation, whatever the test says
    assert found.loc["SAM", "test"] == pytest.approx(0.6)
    assert found.loc["other", "chosen"] == f"0.2 ({SEEDS})"
    rows = [row | {"last/test/accuracy": 0.6 + 0.1 * row["variant"].startswith("other")} for row in rows]
    found = best_radius(study_of(runs), runs, late, pd.DataFrame(rows)).set_index("method")
    assert found["difference"].dropna().to_dict() == pytest.approx({"other": 0.1, "SGD": 0.0})


def test_values_out_of_order_are_pooled() -> None:
    assert decreasing([3.0, 1.0, 2.0, 0.0]) == [3.0, 1.5, 1.5, 0.0]
    assert decreasing([1.0, 2.0, 3.0]) == [2.0, 2.0, 2.0]


def test_trends_are_slopes_per_doubling() -> None:
    rng = np.random.default_rng(1)
    runs = [configured("SAM", "SAM", seed, rho=0.1) for seed in range(SEEDS)]
    runs += [
        configured(f"SAME {c}", "SAME", seed, swept=False, ckpt=1, condition=c, rho=0.1)
        for c in (2.0, 4.0)
        for seed in range(SEEDS)
    ]

    def values(run: Run) -> dict[str, float]:
        c = run.config["sam"]["init_args"].get("condition", 1.0)
        noise = rng.normal(0, 0.01)
        return {
            "train_eval/accuracy": 0.9 - 0.1 * np.log2(c) + noise,
            "grad_norm/base": 4 / c * (1 + noise),
            "sharpness/top_eigenvalue": 10 * (1 + noise),
        }

    found = trends(study_of(runs, claims="notes"), runs, table(runs, values)).set_index("metric")
    assert set(found["path"]) == {"SAME 1, rho 0.1"}
    assert set(found["values"]) == {"1, 2, 4"}
    assert found.loc["training accuracy", "slope"] == pytest.approx(-0.1, abs=0.02)
    assert found.loc["norm of the gradient", "slope"] == pytest.approx(-1, abs=0.05)
    claims = found["claim"].to_dict()
    assert claims == {"training accuracy": "refuted", "norm of the gradient": "confirmed", "top eigenvalue": "open"}


def test_main_effects_of_a_factorial_are_found_apart() -> None:
    """1 doubled adds 4 points, 3 halved takes 3, 4 doubled nothing."""
    rng = np.random.default_rng(2)
    effects = {1: 0.04, 3: -0.03, 4: 0.0}
    runs = []
    for one in (1.0, 2.0):
        for three in (1.0, 0.5):
            for four in (1.0, 2.0):
                gains = {"ckpt1": one, "ckpt2": 1.0, "ckpt3": three, "ckpt4": four}
                runs += [
                    configured(f"{one} {three} {four}", "CheckpointGains", seed, swept=False, **gains, rho=0.2)
                    for seed in range(SEEDS)
                ]

    def values(run: Run) -> dict[str, float]:
        given = run.config["sam"]["init_args"]
        sum_ = sum(effect for k, effect in effects.items() if given[f"ckpt{k}"] != 1)
        return {name: 0.5 + sum_ + rng.normal(0, 0.003) for name in ("train_eval/accuracy", "val/accuracy")}

    found = factors(study_of(runs), runs, table(runs, values), "late").set_index("ckpt")
    assert found["pairs"].tolist() == [4, 4, 4]
    for k, effect in effects.items():
        assert found.loc[k, "validation"] == pytest.approx(effect, abs=0.004)
    assert found["supported"].to_dict() == {1: "yes", 3: "no", 4: "no"}


@pytest.mark.parametrize(
    ("ckpt", "gain", "effect", "supported"),
    [
        (1, 2.0, 0.05, "yes"),
        (1, 0.5, 0.05, "no"),
        (1, 0.5, -0.05, "yes"),  # less of it harms: it was right to raise it
        (2, 2.0, 0.05, "no"),
        (2, 2.0, -0.05, "yes"),
        (2, 0.5, 0.05, "no"),  # to keep it is right only if no change helps
        (2, 0.5, 0.0, "yes"),
        (3, 0.5, 0.05, "yes"),
        (3, 2.0, 0.05, "no"),
        (4, 2.0, 0.0, "no"),
    ],
)
def test_what_customsame_does_with_a_checkpoint_is_supported_by_what_a_gain_there_does(
    ckpt: int, gain: float, effect: float, supported: str
) -> None:
    rng = np.random.default_rng(0)
    runs = [
        configured(name, "CheckpointGains", seed, swept=False, **{f"ckpt{ckpt}": value}, rho=0.2)
        for name, value in (("plain", 1.0), ("changed", gain))
        for seed in range(SEEDS)
    ]
    metrics = ("train_eval/accuracy", "val/accuracy")
    means = table(
        runs, lambda run: dict.fromkeys(metrics, 0.5 + effect * (run.method == "changed") + rng.normal(0, 0.002))
    )
    assert factors(study_of(runs), runs, means, "late")["supported"].tolist() == [supported]


def test_gains_are_read_from_configurations() -> None:
    def gains(rule: str | None, **arguments: Any) -> Any:
        return gains_of({"sam": None if rule is None else {"class_path": rule, "init_args": arguments}})

    assert gains("lightning_same.SAM", rho=0.1) == (1, 1, 1, 1)
    assert gains("SAME", ckpt=[1, 3], condition=3.0) == (3, 1, 3, 1)
    assert gains("CustomSAME") == (2, 1, 0.5, 2)
    assert gains("SANER", alpha=0.25) == (1, 0.75, 1, 1)
    assert gains("SANER", warmup_epochs=5) is None
    assert gains("SAM", perturbation={"class_path": "Adaptive"}) is None
    assert gains("ASAM") is gains(None) is None


def test_the_dose_is_the_length_of_the_change() -> None:
    runs = [configured("SAME 1", "SAME", 0, swept=False, ckpt=1, condition=3.0, rho=0.1)]
    runs += [configured("dose", "CheckpointDose", 0, swept=False, ckpt=4, dose=0.25, rho=0.1)]
    runs += [configured("less", "CheckpointDose", 0, swept=False, ckpt=4, dose=-0.5, rho=0.1)]
    norms = {"grad_norm/perturbed": 10.0, "grad_norm/ckpt1": 8.0, "grad_norm/ckpt2": 6.0}
    means = table(runs, lambda run: norms | {"grad_norm/ckpt3": 0.0, "grad_norm/ckpt4": 0.0})
    found = doses(runs, {"late": means})
    assert found["dose"].tolist() == pytest.approx([2 * 0.8, 0.25, 0.5])
    assert found.loc[0, ["ckpt1", "ckpt2", "ckpt3"]].tolist() == pytest.approx([0.64, 0.36, 0.0])


def test_checkpoints_are_compared_with_their_own_placebos_and_equal_doses() -> None:
    """SAME 1 gains 4 points over SAM, and random elements as many do, too; those of as large a norm do not."""
    rng = np.random.default_rng(4)
    gained = {"SAME 1": 0.04, "as many": 0.04, "as long": 0.0, "dose 4": 0.0, "on all": 0.03, "SAM": 0.0}
    runs = []
    for seed in range(SEEDS):
        runs += [
            configured("SAM", "SAM", seed, swept=False, rho=0.2),
            configured("SAME 1", "SAME", seed, swept=False, ckpt=1, condition=2.0, rho=0.2),
            configured("as many", "RandomGains", seed, swept=False, ckpt=1, condition=2.0, rho=0.2, match="count"),
            configured("as long", "RandomGains", seed, swept=False, ckpt=1, condition=2.0, rho=0.2, match="norm"),
            configured("dose 4", "CheckpointDose", seed, swept=False, ckpt=4, dose=0.5, rho=0.2),
            configured("on all", "CheckpointGains", seed, swept=False, **dict.fromkeys(CKPTS, 1.5), rho=0.2),
        ]

    def values(run: Run) -> dict[str, float]:
        return {
            name: 0.5 + gained[run.method] + rng.normal(0, 0.003) for name in ("train_eval/accuracy", "val/accuracy")
        }

    found = controls(study_of(runs), runs, {"late": table(runs, values)}).set_index(["variant", "control"])
    assert found["beyond"].to_dict() == {
        ("SAME 1", "as many"): "similar",
        ("SAME 1", "as long"): "greater",
        ("dose 4", "on all"): "less",
    }
    assert found.loc[("SAME 1", "as long"), "validation"] == pytest.approx(0.04, abs=0.005)
    assert "memorised" not in found  # it was not logged


def test_a_placebo_is_one_of_its_own_checkpoint_gain_and_radius() -> None:
    same = {"sam": {"class_path": "SAME", "init_args": {"ckpt": 2, "condition": 3.0, "rho": 0.2}}}
    fitting = {"ckpt": 2, "condition": 3.0, "rho": 0.2}
    for other, expected in (fitting, True), (fitting | {"ckpt": 1}, False), (fitting | {"condition": 2.0}, False):
        assert is_control({"sam": {"class_path": "RandomGains", "init_args": other}}, same) is expected
    assert not is_control({"sam": {"class_path": "RandomGains", "init_args": fitting | {"rho": 0.1}}}, same)
    assert not is_control({"sam": None}, same)
    scheduled = {"rho": {"class_path": "Linear"}}  # of two schedules nobody knows whether they are equal
    same["sam"]["init_args"] |= scheduled
    assert not is_control({"sam": {"class_path": "RandomGains", "init_args": fitting | scheduled}}, same)


RULES = [lightning_same.SAME, lightning_same.CustomSAME, lightning_same.SANER, lightning_same.CheckpointGains]


@pytest.mark.parametrize("rule", [*RULES, lightning_same.CheckpointDose, lightning_same.RandomGains])
def test_an_option_that_is_left_out_has_the_rules_own_default(rule: type) -> None:
    """A study knows the rules by their configurations alone."""

    def run(rule: type, **given: Any) -> Run:
        return configured(rule.__name__, rule.__name__, 0, swept=False, **given, rho=0.1)

    def known(run: Run) -> list[Any]:
        all_of_it = 1 + lightning_same.CheckpointDose().dose
        others = [
            {"sam": {"class_path": "SAME", "init_args": {"rho": 0.1}}},
            {"sam": {"class_path": "RandomGains", "init_args": {"rho": 0.1}}},
            {"sam": {"class_path": "CheckpointGains", "init_args": dict.fromkeys(CKPTS, all_of_it) | {"rho": 0.1}}},
        ]
        norms = pd.DataFrame(
            {f"grad_norm/{name}": 0.5 for name in CKPTS} | {"grad_norm/perturbed": 1.0},
            pd.MultiIndex.from_tuples([(run.variant, 0)], names=["variant", "seed"]),
        )
        pairs = [(is_control(run.config, other), is_control(other, run.config)) for other in others]
        return [gains_of(run.config), pairs, doses([run], {"late": norms}).to_dict("records")]

    defaults = {
        name: option.default
        for name, option in inspect.signature(rule).parameters.items()
        if name in ("ckpt", "condition", "alpha", "dose", *CKPTS)
    }
    assert defaults
    assert known(run(rule)) == known(run(rule, **defaults))


def test_sharpness_is_compared_at_the_loss_that_both_have_reached() -> None:
    """Both have log(top) = 3 + loss: equally sharp at every loss, though one ends at a lower one, and so less sharp."""
    runs = [run_of("SAM", seed) for seed in range(4)] + [run_of("SAME 1", seed, sam=same(1)) for seed in range(4)]
    for run in runs:
        run.config["sam"].setdefault("init_args", {})["rho"] = 0.1
    rng = np.random.default_rng(0)
    rows = []
    for run in runs:
        for epoch in range(1, 6):
            loss = 2 - epoch * (0.2 if run.method == "SAM" else 0.3)
            top = float(np.exp(3 + loss + rng.normal(0, 1e-3)))
            rows.append(
                {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
                | {"train_eval/loss": loss, "sharpness/top_eigenvalue": top}
            )
    found = sharpness_at_equal_loss(study_of(runs), runs, pd.DataFrame(rows)).iloc[0]
    assert found["loss"] == pytest.approx(1.0)
    assert found["ratio"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"ckpt_fraction/rest": 0.8}, "rest 80%"),
        ({"train_eval/loss": 2.4}, "training loss 2.40 > ln 10"),
        ({"train_eval/loss": float("nan")}, "training loss nan"),
        ({"ckpt_fraction/rest": 0.3, "train_eval/loss": 2.0}, None),
        ({"train_eval/loss": 2.4, "train/loss": 1.0}, "training loss 2.40 > ln 10"),  # as in evaluation, where known
        ({"train/loss": 2.4}, None),
    ],
)
def test_a_network_that_is_dead_or_worse_than_a_guess_has_collapsed(values: dict[str, float], why: str | None) -> None:
    run = Run("r", "SAM", {}, 0, {"model": {"init_args": {"num_classes": 10}}})
    rows = [
        {"run": "r", "variant": "SAM", "seed": 0, "epoch": epoch, "train_eval/loss": 1.0, "ckpt_fraction/rest": 0.1}
        | (values if epoch > 15 else {})
        for epoch in range(1, 21)
    ]
    assert collapsed([run], pd.DataFrame(rows), 0.25) == ({"r": why} if why else {})
