"""Where e and the step point, and the curvature along them: against a dense Hessian in numpy."""

from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from support.fits import RowLogger, fit
from support.nets import Plain, build, float64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lightning_same import ASAM, SAM, SharpnessMonitor, with_sam

RHO = 0.2


class Dense(NamedTuple):
    """The loss of a module around its weights, in numpy."""

    loss: Any
    g: np.ndarray
    h: np.ndarray
    w: np.ndarray

    @property
    def top(self) -> np.ndarray:
        return np.linalg.eigh(self.h)[1][:, -1]

    def of_sam(self) -> np.ndarray:
        return RHO * self.g / np.linalg.norm(self.g)

    def of_asam(self, eta: float = 0.01) -> np.ndarray:
        t = np.abs(self.w) + eta
        return RHO * t * t * self.g / np.linalg.norm(t * self.g)


def dense(module: pl.LightningModule, batch: Any) -> Dense:
    names, shapes = zip(*[(name, param.shape) for name, param in module.named_parameters()], strict=True)
    x, y = batch

    def loss(w: Tensor) -> Tensor:
        parts = torch.split(w, [shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return cross_entropy(functional_call(module, weights, x), y)

    w = nn.utils.parameters_to_vector(module.parameters()).detach()
    g, h = torch.autograd.functional.jacobian(loss, w), torch.autograd.functional.hessian(loss, w)
    return Dense(lambda w: loss(torch.tensor(w)).item(), g.numpy(), h.numpy(), w.numpy())


def aligned(one: np.ndarray, other: np.ndarray) -> float:
    return float(abs(one @ other) / np.linalg.norm(one) / np.linalg.norm(other))


class Watched(pl.Callback):
    """What the Trainer's weights are before every batch, and the dense Hessian there."""

    def __init__(self) -> None:
        self.found: list[Dense] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        probe = next(iter(pl_module.train_dataloader()))
        self.found.append(dense(pl_module, probe))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_start(trainer, pl_module, None, 0)


@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize(
    ("name", "rule", "accumulate"), [("", None, 1), ("SAM", SAM(RHO), 1), ("ASAM", ASAM(RHO), 1), ("", None, 2)]
)
def test_they_are_those_of_the_dense_hessian(name: str, rule: Any, accumulate: int, dtype: Any) -> None:
    logger, watched = RowLogger(), Watched()
    monitor = SharpnessMonitor(
        every_n_steps=2,
        rho=None if rule else RHO,
        gradient_curvature=True,
        tolerance=1e-7,
        max_products=103,
        dtype=dtype,
    )
    with float64():
        module = build(Plain)
        fit(
            with_sam(module, rule) if rule else module,
            callbacks=[watched, monitor],
            logger=logger,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
        )
    steps: dict[int, dict[str, float]] = {}
    for step, row in logger.rows:
        if any(key.startswith("sharpness/") for key in row):
            assert step is not None
            steps.setdefault(step, {}).update(row)
    assert [*steps] == [*range(0, 6 // accumulate, 2)]
    for step, row in steps.items():
        before, after = watched.found[step * accumulate], watched.found[(step + 1) * accumulate]
        e = before.of_asam() if name == "ASAM" else before.of_sam()
        gap = before.loss(before.w + e) - before.loss(before.w)
        expected = {
            "ascent_gap": gap,
            "ascent_curvature": 2 * (gap - before.g @ e) / (e @ e),
            "ascent_alignment": aligned(e, before.top),
            "step_alignment": aligned(after.w - before.w, before.top),
            "gradient_curvature": before.g @ before.h @ before.g / (before.g @ before.g),
            "two_over_lr": 2 / 0.1,
        }
        found = {key: row[f"sharpness/{key}"] for key in expected}
        assert found == pytest.approx(expected, rel=1e-5)


class TwoGroups(Plain):
    """Two learning rates, and a schedule."""

    def configure_optimizers(self) -> Any:
        first, second = self.layers[0].parameters(), self.layers[2].parameters()
        optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.4}], lr=0.0)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_two_over_lr_is_of_the_largest_learning_rate_of_the_moment() -> None:
    logger = RowLogger()
    fit(build(TwoGroups), callbacks=[SharpnessMonitor(every_n_steps=2)], logger=logger, max_epochs=1)
    found = [row["sharpness/two_over_lr"] for _, row in logger.rows if "sharpness/two_over_lr" in row]
    assert found == pytest.approx([5.0, 20.0, 80.0])


def test_without_a_learning_rate_there_is_no_edge_of_stability() -> None:
    made = fit(build(Plain, lr=0.0), callbacks=[SharpnessMonitor()], max_steps=1)
    assert made.callback_metrics["sharpness/top_eigenvalue"] > 0
    assert "sharpness/two_over_lr" not in made.callback_metrics


def test_a_step_that_does_not_move_has_no_direction() -> None:
    class Still(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    made = fit(build(Still), callbacks=[SharpnessMonitor()], max_steps=1)
    assert torch.isnan(made.callback_metrics["sharpness/step_alignment"])
    assert "sharpness/two_over_lr" not in made.callback_metrics
