"""What a monitor cannot measure, or cannot be told, is said by its name, with the way out."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from support.fits import fit, trainer
from support.monitored import class_zero
from support.nets import Plain, build
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_same import (
    CheckpointEffectMonitor,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    ReplayCheck,
    SharpnessMonitor,
)

PROBES = [CheckpointFractionMonitor, GradientNormMonitor, SharpnessMonitor, ReplayCheck]


class WithLosses(Plain):
    def losses(self, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("monitor", "options", "complaint"),
    [
        (CheckpointEffectMonitor, {"every_n_steps": 0}, "`every_n_steps` must be a whole number >= 1, got 0"),
        (CheckpointEffectMonitor, {"losses_fn": 3}, "`losses_fn` must be a function, got 3"),
        (CheckpointEffectMonitor, {"noisy_mask": "y"}, "`noisy_mask` must be a function, got 'y'"),
        (
            CheckpointEffectMonitor,
            {"validation_batches": -1},
            "`validation_batches` must be a whole number >= 0, got -1",
        ),
        (CheckpointEffectMonitor, {"rho": 0}, "`rho` must be a finite number > 0, got 0"),
        (CheckpointEffectMonitor, {"placebo_seed": -1}, "`placebo_seed` must be a whole number >= 0, got -1"),
        (CheckpointEffectMonitor, {"name": "a/b"}, "`name` becomes a part of log keys"),
        (ReplayCheck, {"every_n_steps": 0}, "`every_n_steps` must be a whole number >= 1, got 0"),
        (CheckpointFractionMonitor, {"loss_fn": 1}, "`loss_fn` must be a function or None, got 1"),
        (GradientNormMonitor, {"loss_fn": 1}, "`loss_fn` must be a function or None, got 1"),
    ],
)
def test_bad_options_are_named(monitor: Any, options: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{monitor.__name__}: {complaint}"):
        monitor(**options)


def test_the_effects_are_refused_over_shards() -> None:
    made = trainer()
    made.strategy.__class__ = type("ModelParallelStrategy", (ModelParallelStrategy,), {})
    with pytest.raises(RuntimeError, match=r'^CheckpointEffectMonitor: ModelParallelStrategy shards .*strategy="ddp"'):
        CheckpointEffectMonitor(noisy_mask=class_zero).on_fit_start(made, build(WithLosses))


class Iterates(Plain):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.parametrize("monitor", PROBES)
def test_an_iterator_cannot_be_replayed(monitor: Any) -> None:
    with pytest.raises(
        RuntimeError, match=f"^{monitor.__name__}: Iterates.training_step takes `dataloader_iter`.*`batch`"
    ):
        fit(build(Iterates), callbacks=[monitor()])


class NoScalar(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")


class NoLoss(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"lost": super().training_step(batch, batch_idx)}


def by_sample(module: Any, batch: Any) -> Tensor:
    return NoScalar.training_step(module, batch, 0)


@pytest.mark.parametrize("monitor", PROBES)
def test_a_loss_that_is_none_is_told_by_where_it_comes_from(monitor: Any) -> None:
    with pytest.raises(ValueError, match=r"NoScalar.training_step must return a scalar loss, got shape \(8,\)"):
        fit(build(NoScalar), callbacks=[monitor()])
    with pytest.raises(
        TypeError, match=r"NoLoss.training_step must return the loss, or a mapping .*'loss'.*\['lost'\]"
    ):
        fit(build(NoLoss), callbacks=[monitor()])
    with pytest.raises(ValueError, match=r"`loss_fn` must return a scalar loss, got shape \(8,\); reduce it by `.mean"):
        fit(build(Plain), callbacks=[monitor(loss_fn=by_sample)])
    with pytest.raises(TypeError, match=r"`loss_fn` must return a scalar loss tensor, got 1\.0"):
        fit(build(Plain), callbacks=[monitor(loss_fn=lambda module, batch: 1.0)])


class TwoLengths(Plain):
    """A batch of eight samples and three weights."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch["xy"], batch_idx)

    def train_dataloader(self) -> Any:
        return DataLoader([{"xy": xy, "weights": torch.ones(3)} for xy in Plain().train_dataloader()], batch_size=None)


def test_how_many_samples_a_batch_has_is_asked_if_it_matters() -> None:
    monitor = partial(SharpnessMonitor, probe_batches=2)
    with pytest.raises(
        ValueError, match=r"^SharpnessMonitor: the number of samples in a batch of type dict is unclear"
    ):
        fit(build(TwoLengths), callbacks=[monitor()], max_steps=2)
    keys = {"sharpness/top_eigenvalue"}
    made = fit(build(TwoLengths), callbacks=[monitor(samples_fn=lambda batch: len(batch["xy"][0]))], max_steps=2)
    assert keys <= made.callback_metrics.keys()
    made = fit(build(TwoLengths), callbacks=[SharpnessMonitor()], max_steps=1)  # The weight of an only batch cancels.
    assert keys <= made.callback_metrics.keys()
