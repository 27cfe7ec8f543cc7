"""What a report says of the mechanism: whom a step along a checkpoint helps, and what the explanation predicts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.planted import run_of, study_of

from lightning_same.experiments.study.mechanism import (
    DOWN_WEIGHTING,
    NEGLIGIBLE,
    a_step,
    amplification,
    explanation,
    mechanism,
    phases,
)
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.statistics import Differences

SEEDS = 6


def test_the_mechanism_is_read_in_three_phases_and_beside_the_placebo() -> None:
    rng = np.random.default_rng(0)
    runs = [run_of("SAM", seed) for seed in range(SEEDS)]
    rows = []
    for run in runs:
        for epoch in range(1, 21):
            row: dict[str, Any] = {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
            late = epoch > 15
            for k in (1, 2, 3, 4):
                noise = rng.normal(0, 0.01)
                row[f"ckpt_effect/ckpt{k}/clean"] = row[f"ckpt_effect/ckpt{k}/noisy"] = 0.2 + noise
                row[f"ckpt_effect/ckpt{k}/validation"] = (0.3 if k == 1 and late else 0.1) + noise
                row[f"ckpt_share/ckpt{k}/noisy"] = row[f"ckpt_dominated/ckpt{k}/noisy"] = 0.6
                for match, level in ("count", 0.15), ("norm", 0.1):
                    row[f"ckpt_placebo_{match}/ckpt{k}/validation"] = level + rng.normal(0, 0.01)
            for where, more in ("clean_dominated", 0.0), ("noisy_dominated", 0.3):
                row[f"ckpt_amplification/{where}/whole"] = 1.1
                row[f"ckpt_amplification/{where}/clean"] = 1.2 + more + rng.normal(0, 0.01)
                row[f"ckpt_amplification/{where}/noisy"] = 1.2 + rng.normal(0, 0.01)
            rows.append(row)
    curves = pd.DataFrame(rows)
    found = mechanism(study_of(runs), runs, curves).set_index(["phase", "ckpt"])
    assert len(found) == 12
    words = found["beyond_norm_is"]
    assert set(found["a_step"]) == {"learns patterns"}
    assert words["late", 1] == "greater"
    assert set(words.drop(("late", 1))) == {"open"}
    assert found.loc[("middle", 2), "validation"] == pytest.approx(0.1, abs=0.01)
    assert found.loc[("middle", 2), "beyond_count"] == pytest.approx(-0.05, abs=0.01)
    assert found.loc[("middle", 2), "beyond_norm"] == pytest.approx(0, abs=0.01)
    assert set(found["beyond_count_is"].drop(("late", 1))) == {"less"}
    dominated = amplification(study_of(runs), runs, curves).set_index(["phase", "where"])
    assert dominated.loc[("late", "noisy_dominated"), "difference"] == pytest.approx(0.3, abs=0.02)
    assert dominated["difference_is"].to_dict() == {
        (phase, where): "greater" if where == "noisy_dominated" else "open"
        for phase in ("early", "middle", "late")
        for where in ("clean_dominated", "noisy_dominated")
    }


@pytest.mark.parametrize(
    ("noisy", "validation", "expected"),
    [
        (0.5, 0.2, "learns patterns"),  # whatever it does to noisy samples
        (-0.5, 0.2, "learns patterns"),
        (0.5, -0.2, "fits noise"),
        (-0.5, -0.2, "harms"),
        (0.0, -0.2, "harms"),
    ],
)
def test_a_step_is_named_by_its_effects(noisy: float, validation: float, expected: str) -> None:
    spread = np.array([-0.01, 0.0, 0.01])
    word, p = a_step(Differences(noisy + spread, NEGLIGIBLE), Differences(validation + spread, NEGLIGIBLE))
    assert word == expected
    assert p < 0.05


def test_noise_is_fitted_as_surely_as_the_less_sure_of_its_two_effects_is_shown() -> None:
    surely, hardly = np.array([-0.01, 0.0, 0.01]), np.array([-0.3, 0.0, 0.3])
    for noisy, validation in ((0.5 + surely, -0.2 + hardly), (0.5 + hardly / 2, -0.2 + surely)):
        effects = Differences(noisy, NEGLIGIBLE), Differences(validation, NEGLIGIBLE)
        word, p = a_step(*effects)
        assert word == "fits noise"
        assert p == max(effects[0].p("greater"), effects[1].p("less"))


def test_the_phase_between_holds_the_epochs_of_neither_other() -> None:
    runs = [run_of("SAM", 0)]
    key = {"run": runs[0].name, "variant": runs[0].variant, "seed": 0}
    curves = pd.DataFrame([{**key, "epoch": epoch, "x": float(epoch)} for epoch in range(1, 21)])
    means = {phase: table["x"].item() for phase, table in phases(study_of(runs), curves).items()}
    assert means == {"early": 3.0, "middle": 10.5, "late": 18.0}


def test_steps_that_are_not_shown_to_help_or_to_harm_are_open() -> None:
    """Of 40 studies in which nothing has an effect at most some name a step; without the correction most do."""
    rng = np.random.default_rng(0)
    runs = [run_of("SAM", seed) for seed in range(SEEDS)]
    named = alone = 0
    for _ in range(40):
        rows = []
        for run in runs:
            for epoch in range(1, 5):
                row: dict[str, Any] = {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
                for k in (1, 2, 3, 4):
                    row |= {f"ckpt_effect/ckpt{k}/{name}": rng.normal() for name in ("clean", "noisy", "validation")}
                rows.append(row)
        found = mechanism(study_of(runs), runs, pd.DataFrame(rows))
        named += bool((found["a_step"] != "open").any())
        alone += bool(((found["validation_low"] > 0) | (found["validation_high"] < 0)).any())
    assert named <= 5
    assert alone > 10


AMPLIFIED = ("ckpt_amplification/noisy_dominated", "ckpt_amplification/clean_dominated")


def planted_curves(values: dict[str, float]) -> tuple[list[Run], pd.DataFrame]:
    """Curves of what is logged, with what a seed adds to all of it, and noise."""
    rng = np.random.default_rng(1)
    runs = [run_of("SAM", seed) for seed in range(SEEDS)]
    common = {seed: rng.normal(0, 0.1) for seed in range(SEEDS)}
    rows = [
        {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
        | {key: value and value + common[run.seed] + rng.normal(0, 0.01) for key, value in values.items()}
        for run in runs
        for epoch in range(1, 21)
    ]
    return runs, pd.DataFrame(rows)


LOGGED = {
    "ckpt_share/ckpt1/noisy": 0.7,
    "ckpt_share/ckpt2/noisy": 0.6,
    "ckpt_dominated/ckpt1/noisy": 0.6,
    "ckpt_dominated/ckpt2/noisy": 0.6,
    f"{AMPLIFIED[0]}/clean": 1.3,
    f"{AMPLIFIED[0]}/noisy": 1.1,
    f"{AMPLIFIED[1]}/clean": 1.1,
    f"{AMPLIFIED[1]}/noisy": 1.3,
    f"{AMPLIFIED[0]}/whole": 1.1,
    f"{AMPLIFIED[1]}/whole": 1.2,
}


@pytest.mark.parametrize(("on_clean", "beyond"), [(1.3, "open"), (1.2, "yes"), (1.4, "no")])
def test_each_prediction_of_the_explanation_is_held_against_what_was_logged(on_clean: float, beyond: str) -> None:
    """Amplified more where it is dominated: clean samples by 0.2, noisy ones as much, less or more."""
    runs, curves = planted_curves(LOGGED | {f"{AMPLIFIED[1]}/noisy": on_clean})
    found = explanation(study_of(runs), runs, curves)
    expected = dict(zip((p.says for p in DOWN_WEIGHTING), ("yes", beyond, "yes", "open", "no"), strict=True))
    assert found.groupby("prediction", sort=False)["holds"].unique().map(list).to_dict() == {
        says: [word] for says, word in expected.items()
    }
    first = found.iloc[0]
    assert first["difference"] == pytest.approx(first["larger"] - first["smaller"])
    assert first["difference"] == pytest.approx(0.2, abs=0.01)


def test_without_wrong_labels_the_explanation_has_nothing_to_say() -> None:
    runs, curves = planted_curves(LOGGED | {key: 0.0 for key in LOGGED if key.endswith("/noisy")})
    assert amplification(study_of(runs), runs, curves)["difference"].isna().all()
    assert explanation(study_of(runs), runs, curves).empty
    assert explanation(study_of(runs), runs, curves[["run", "variant", "seed", "epoch"]]).empty
