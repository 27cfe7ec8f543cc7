"""What a monitor measures, and how well, if nothing is said: as its docstring and the docs say."""

import inspect
from typing import Any

import pytest

from lightning_same import (
    CheckpointEffectMonitor,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    ReplayCheck,
    SharpnessMonitor,
)

GRADIENTS = {
    "every_n_steps": None,
    "every_n_epochs": None,
    "per_layer": False,
    "per_group": False,
    "noisy_mask": None,
    "prog_bar": False,
    "rho": 0.05,
    "loss_fn": None,
    "name": None,
}

DEFAULTS: dict[Any, dict[str, Any]] = {
    CheckpointFractionMonitor: GRADIENTS | {"histogram": False},
    GradientNormMonitor: GRADIENTS,
    CheckpointEffectMonitor: {
        "every_n_steps": None,
        "every_n_epochs": None,
        "losses_fn": None,
        "noisy_mask": None,
        "validation_batches": 1,
        "rho": None,
        "placebo_seed": 0,
        "name": None,
    },
    SharpnessMonitor: {
        "every_n_steps": None,
        "every_n_epochs": None,
        "probe_batches": 1,
        "loss_fn": None,
        "samples_fn": None,
        "rho": None,
        "mode": "eval",
        "track": False,
        "tolerance": 2e-3,
        "both_ends": False,
        "max_products": 32,
        "confident": False,
        "dtype": None,
        "adaptive": False,
        "worst_case": None,
        "average_case": None,
        "gradient_curvature": False,
        "seed": 0,
        "prog_bar": False,
        "name": None,
    },
    ReplayCheck: {"every_n_steps": None, "loss_fn": None},
}


@pytest.mark.parametrize("monitor", DEFAULTS, ids=lambda monitor: monitor.__name__)
def test_the_defaults_of_monitors(monitor: Any) -> None:
    parameters = inspect.signature(monitor).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == DEFAULTS[monitor]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())


@pytest.mark.parametrize(
    ("options", "period"), [({}, 500), ({"every_n_steps": 7}, 7), ({"every_n_epochs": 2}, None)], ids=str
)
def test_sharpness_is_measured_at_one_step_in_500(options: dict[str, int], period: int | None) -> None:
    assert SharpnessMonitor(**options).cadence.every_n_steps == period
