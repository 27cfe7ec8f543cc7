"""SharpnessMonitor in float64, until it is sure, and in units of the weights."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import RowLogger, differences, fit, observed_fit
from support.nets import Everything, Plain, build
from support.sharpness import TOP, exact
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_same import (
    AdaptiveHessian,
    Hessian,
    SharpnessMonitor,
    average_case_sharpness,
    top_eigenvalue,
    worst_case_sharpness,
)
from lightning_same.curvature.eigenvalues import extreme_eigenvalues

ALL: dict[str, Any] = {"adaptive": True, "worst_case": 0.2, "average_case": 0.1}


def first_row(module: Any, **options: Any) -> dict[str, float]:
    logger = RowLogger()
    fit(module, callbacks=[SharpnessMonitor(**options)], logger=logger, max_steps=1)
    return next(row for _, row in logger.rows if TOP in row)


def test_what_is_invariant_to_the_scale_of_the_weights() -> None:
    module = build(Plain)
    batch = next(iter(module.train_dataloader()))
    hessian = Hessian(lambda: cross_entropy(module(batch[0]), batch[1]), module)
    expected = {
        "sharpness/adaptive_top_eigenvalue": top_eigenvalue(AdaptiveHessian(hessian)).value,
        "sharpness/worst_case": worst_case_sharpness(hessian, rho=0.2).value,
        "sharpness/average_case": average_case_sharpness(hessian, rho=0.1).value,
    }
    row = first_row(build(Plain), **ALL)
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert row["sharpness/hvps"] > first_row(build(Plain))["sharpness/hvps"]
    assert not expected.keys() & first_row(build(Plain)).keys()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_float64_is_the_model_in_float64(mode: Any) -> None:
    double = copy.deepcopy(build(Plain)).double()
    x, y = next(iter(build(Plain).train_dataloader()))
    row = first_row(build(Plain), dtype="float64", mode=mode, tolerance=1e-9, max_products=103)
    assert row["sharpness/converged"] == 1
    assert row["sharpness/rounding"] < 1e-12 * row[TOP]
    params = list(double.parameters())
    expected = top_eigenvalue(
        lambda: cross_entropy(double(x.double()), y), params, tolerance=1e-9, max_products=103
    ).value
    assert row[TOP] == pytest.approx(expected, rel=1e-7)  # logged in float32


def test_products_are_counted_and_every_search_must_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    row = first_row(build(Plain))
    along = first_row(build(Plain), gradient_curvature=True)
    assert along["sharpness/hvps"] == row["sharpness/hvps"] + 1
    assert (row["sharpness/converged"], along["sharpness/converged"]) == (1, 1)

    def adaptive_fails(hessian: Any, *args: Any, **options: Any) -> Any:
        found = extreme_eigenvalues(hessian, *args, **options)
        return found._replace(converged=False) if isinstance(hessian, AdaptiveHessian) else found

    monkeypatch.setattr("lightning_same.callbacks.sharpness_measures.extreme_eigenvalues", adaptive_fails)
    with pytest.warns(UserWarning, match="a measurement has not converged"):
        assert first_row(build(Plain), adaptive=True)["sharpness/converged"] == 0
    assert first_row(build(Plain))["sharpness/converged"] == 1


class Late(Plain):
    """Where float32 cannot tell: so sure of its classes that the loss is about 1e-6."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0]) + 15 * torch.nn.functional.one_hot(batch[1], 10)[:, : self(batch[0]).shape[1]]
        return cross_entropy(logits, batch[1])


def test_rounding_is_logged_and_auto_does_without_it() -> None:
    with pytest.warns(UserWarning, match=r"sharpness/converged = 0.*error by rounding.*float64"):
        single = first_row(build(Late))
    assert single["sharpness/converged"] == 0
    assert single["sharpness/rounding"] > 2e-3 * single[TOP]
    auto = first_row(build(Late), dtype="auto")
    assert auto["sharpness/converged"] == 1
    assert auto["sharpness/rounding"] < 1e-6 * auto[TOP]
    assert auto[TOP] == pytest.approx(first_row(build(Late), dtype="float64")[TOP], rel=1e-7)
    assert auto["sharpness/hvps"] > single["sharpness/hvps"]


def test_confident() -> None:
    plain, sure = (first_row(build(Plain), confident=confident) for confident in (False, True))
    top = exact(build(Plain), next(iter(build(Plain).train_dataloader())))[-1].item()
    for row in (plain, sure):
        assert row["sharpness/upper_bound"] >= top * (1 - 1e-5)
    assert sure["sharpness/upper_bound"] - sure[TOP] <= 2.1e-3 * sure[TOP]
    assert plain["sharpness/upper_bound"] - plain[TOP] > 4e-3 * plain[TOP]


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({**ALL, "dtype": "float64", "mode": "train"}, "32-true"),
        ({**ALL, "dtype": "float64", "probe_batches": 2}, "bf16-mixed"),
        ({**ALL, "dtype": "auto", "confident": True}, "32-true"),
        (ALL, "16-scaled"),
    ],
    ids=str,
)
def test_it_disturbs_nothing(tmp_path: Path, options: dict[str, Any], precision: Any) -> None:
    def observed(*monitors: SharpnessMonitor) -> dict[str, Any]:
        seen = observed_fit(build(Everything), tmp_path, callbacks=list(monitors), precision=precision)
        seen["rows"] = [
            (step, row) for step, row in seen["rows"] if not any(key.startswith("sharpness/") for key in row)
        ]
        seen["metrics"] = {key: value for key, value in seen["metrics"].items() if not key.startswith("sharpness/")}
        states = seen["checkpoint file"]["callbacks"]
        seen["checkpoint file"]["callbacks"] = {key: state for key, state in states.items() if "Sharpness" not in key}
        return seen

    plain = observed()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has not converged")
        watched = observed(SharpnessMonitor(every_n_steps=4, max_products=5, **options))
    assert differences(plain, watched) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, '`dtype` must be "float64", "auto" or None, got \'float32\''),
        ({"worst_case": 0}, "`worst_case` must be a finite number > 0"),
        ({"average_case": -1}, "`average_case` must be a finite number > 0"),
        ({"seed": "x"}, "`seed` must be a whole number >= 0, got 'x'"),
        ({"seed": 2**70}, "`seed` must be a whole number >= 0, got 1180591620717411303424"),
        ({"loss_fn": 3}, "`loss_fn` must be a function or None, got 3"),
        ({"samples_fn": "len"}, "`samples_fn` must be a function or None, got 'len'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharpnessMonitor(**options)
