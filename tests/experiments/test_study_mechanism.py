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
                for match in "count", "norm":
                    row[f"ckpt_placebo_{match}/ckpt{k}/validation"] = 0.1 + rng.normal(0, 0.01)
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


def planted_curves(signs: dict[str, float], noisy: bool = True) -> tuple[list[Run], pd.DataFrame]:
    """Curves in which each prediction has the given sign."""
    rng = np.random.default_rng(1)
    runs = [run_of("SAM", seed) for seed in range(SEEDS)]
    rows = []
    for run in runs:
        for epoch in range(1, 21):
            row: dict[str, Any] = {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch}
            for prediction in DOWN_WEIGHTING:
                row[prediction.larger] = row[prediction.smaller] = 0.0
            for says, larger, smaller in DOWN_WEIGHTING:
                common = rng.normal(0, 0.1)
                row[smaller] = 0.6 + common + rng.normal(0, 0.01)
                row[larger] = 0.6 + common + 0.1 * signs[says] + rng.normal(0, 0.01)
            if not noisy:
                row |= {f"ckpt_share/ckpt{k}/noisy": 0.0 for k in (1, 2)}
            rows.append(row)
    return runs, pd.DataFrame(rows)


def test_each_prediction_of_the_explanation_is_held_against_what_was_logged() -> None:
    says = [prediction.says for prediction in DOWN_WEIGHTING]
    signs = dict(zip(says, (1.0, -1.0, 0.0, 1.0), strict=True))
    runs, curves = planted_curves(signs)
    found = explanation(study_of(runs), runs, curves)
    assert found.groupby("prediction", sort=False)["holds"].unique().map(list).to_dict() == {
        says[0]: ["yes"],
        says[1]: ["no"],
        says[2]: ["open"],
        says[3]: ["yes"],
    }
    first = found.iloc[0]
    assert first["difference"] == pytest.approx(first["larger"] - first["smaller"])
    assert first["difference"] == pytest.approx(0.1, abs=0.01)


def test_without_wrong_labels_the_explanation_has_nothing_to_say() -> None:
    runs, curves = planted_curves(dict.fromkeys((p.says for p in DOWN_WEIGHTING), 1.0), noisy=False)
    assert explanation(study_of(runs), runs, curves).empty
    assert explanation(study_of(runs), runs, curves[["run", "variant", "seed", "epoch"]]).empty
