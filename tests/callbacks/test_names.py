"""Several monitors in one training: their names, keys and states; and who reads values that are old."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from support.fits import RowLogger, fit, trainer
from support.monitored import class_zero
from support.nets import Plain, build

from lightning_same import (
    SAM,
    CheckpointEffectMonitor,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    SharpnessMonitor,
    with_sam,
)

MONITORS = (CheckpointFractionMonitor, GradientNormMonitor, SharpnessMonitor)


class WithLosses(Plain):
    def losses(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")


def values_of(*monitors: Any, **options: Any) -> dict[str, float]:
    logger = RowLogger()
    fit(build(WithLosses), callbacks=list(monitors), logger=logger, max_steps=1, **options)
    return {key: value for _, row in logger.rows for key, value in row.items() if key != "epoch"}


def effects(**options: Any) -> CheckpointEffectMonitor:
    return CheckpointEffectMonitor(noisy_mask=class_zero, **options)


@pytest.mark.parametrize(
    ("monitor", "options"),
    [
        (
            CheckpointFractionMonitor,
            {"histogram": True, "per_layer": True, "per_group": True, "noisy_mask": class_zero},
        ),
        (GradientNormMonitor, {"per_layer": True, "per_group": True}),
        (SharpnessMonitor, {"adaptive": True}),
        (effects, {}),
    ],
)
def test_a_name_is_the_second_part_of_every_key(monitor: Any, options: Any) -> None:
    plain, named = values_of(monitor(**options)), values_of(monitor(**options, name="my.run-1"))
    assert plain
    for key, value in plain.items():
        first, *others = key.split("/", 1)
        assert named.pop("/".join([first, "my.run-1", *others])) == value
    assert not named


def test_monitors_of_a_kind_stand_beside_each_other(tmp_path: Path) -> None:
    radii = {"small": 0.05, "large": 0.5}
    both = values_of(*(CheckpointFractionMonitor(rho=rho, name=name) for name, rho in radii.items()))
    for name, rho in radii.items():
        alone = values_of(CheckpointFractionMonitor(rho=rho))
        for key, value in alone.items():
            assert both[key.replace("/", f"/{name}/", 1)] == value
    assert both["ckpt_fraction/small/ckpt1"] != both["ckpt_fraction/large/ckpt1"]

    def monitors() -> list[Any]:
        return [SharpnessMonitor(every_n_steps=5, name=mode, mode=mode) for mode in ("eval", "train")]

    made = fit(build(Plain), callbacks=monitors(), max_steps=7)
    made.save_checkpoint(tmp_path / "file.ckpt")
    assert made.callback_metrics["sharpness/eval/top_eigenvalue"] > 0
    assert made.callback_metrics["sharpness/train/top_eigenvalue"] > 0
    states = torch.load(tmp_path / "file.ckpt", weights_only=False)["callbacks"]
    assert [state for key, state in states.items() if "SharpnessMonitor" in key] == [{"last_step": 5}] * 2
    logger = RowLogger()
    made = trainer(callbacks=monitors(), max_steps=12, max_epochs=-1, logger=logger)
    made.fit(build(Plain), ckpt_path=tmp_path / "file.ckpt")
    steps = [step for step, row in logger.rows if any(key.endswith("top_eigenvalue") for key in row)]
    assert steps == [10, 10]


def test_the_progress_bar_tells_them_apart() -> None:
    monitors = [SharpnessMonitor(name=name, prog_bar=True) for name in ("one", "two")]
    made = fit(build(Plain), callbacks=monitors, max_steps=1)
    assert {"top_eigenvalue one", "top_eigenvalue two"} <= made.progress_bar_metrics.keys()


@pytest.mark.parametrize("name", [None, "name"])
@pytest.mark.parametrize("monitor", [CheckpointFractionMonitor, GradientNormMonitor, effects])
def test_two_that_would_log_the_same_keys_are_refused(monitor: Any, name: Any) -> None:
    pair = [monitor(name=name), monitor(name=name, every_n_steps=7)]
    with pytest.raises(
        ValueError, match=r"two of the Trainer's callbacks would log the same keys.*\(name=\"second\"\)"
    ):
        fit(build(WithLosses), callbacks=pair)
    fit(build(WithLosses), callbacks=[monitor(name=name), monitor(name="second")], max_steps=1)


def test_two_of_sharpness_are_refused() -> None:
    pair: list[Any] = [SharpnessMonitor(mode="eval"), SharpnessMonitor(mode="train")]
    with pytest.raises(ValueError, match=r"would log the same keys, sharpness/\.\.\. Give them names"):
        fit(build(Plain), callbacks=pair)
    with pytest.raises(RuntimeError, match="more than one stateful callback"):  # Lightning's own check comes first
        trainer(callbacks=[SharpnessMonitor(), SharpnessMonitor()])


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("name", ["", "a/b", "a b", 3])
def test_a_name_fits_into_a_key(monitor: Any, name: Any) -> None:
    with pytest.raises(ValueError, match=rf"{monitor.__name__}: `name` becomes a part of log keys"):
        monitor(name=name)


TOP = "sharpness/top_eigenvalue"


class Plateau(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": TOP}}


class EverySecond(Plateau):
    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        made["lr_scheduler"]["frequency"] = 2
        return made


class Validated(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


def told(*callbacks: Any, kind: Any = Plain, **options: Any) -> list[str]:
    """Of which readers it is told that they read a value again. An epoch has six steps."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(build(kind), callbacks=list(callbacks), **{"max_epochs": 4, "enable_checkpointing": True, **options})
    texts = [str(warning.message) for warning in seen]
    return [text.split(": ")[1].split(" reads")[0] for text in texts if "more often than it is measured" in text]


def test_early_stopping_on_old_values_is_told() -> None:
    stop: dict[str, Any] = {"patience": 9, "check_on_train_epoch_end": True}
    assert told(SharpnessMonitor(), EarlyStopping(TOP, **stop)) == ["EarlyStopping"]
    assert told(SharpnessMonitor(every_n_epochs=1), EarlyStopping(TOP, **stop)) == []
    assert told(SharpnessMonitor(every_n_steps=6), EarlyStopping(TOP, **stop)) == []
    assert told(SharpnessMonitor(every_n_steps=9), EarlyStopping(TOP, **stop)) == ["EarlyStopping"]
    assert told(SharpnessMonitor(), EarlyStopping("val_loss", **stop), kind=Validated) == []
    # Read at every second validation, where it is measured at every second epoch.
    every_second: dict[str, Any] = {"kind": Validated, "check_val_every_n_epoch": 2, "max_epochs": 8}
    assert told(SharpnessMonitor(every_n_steps=12), EarlyStopping(TOP, patience=9), **every_second) == []
    assert told(SharpnessMonitor(every_n_steps=24), EarlyStopping(TOP, patience=9), **every_second) == ["EarlyStopping"]


def test_it_is_told_in_each_fit() -> None:
    monitor = SharpnessMonitor()
    for _ in range(2):
        assert told(monitor, EarlyStopping(TOP, patience=9, check_on_train_epoch_end=True)) == ["EarlyStopping"]


def test_model_checkpoint_and_schedulers_on_old_values_are_told(tmp_path: Path) -> None:
    def keep(**options: Any) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, monitor=TOP, **options)

    assert told(SharpnessMonitor(every_n_steps=2), keep(every_n_train_steps=2)) == []
    assert told(SharpnessMonitor(every_n_steps=4), keep(every_n_train_steps=2)) == ["ModelCheckpoint"]
    assert told(SharpnessMonitor(every_n_steps=12), keep(every_n_epochs=2)) == []
    assert told(SharpnessMonitor(every_n_steps=24), keep(every_n_epochs=2)) == ["ModelCheckpoint"]
    assert told(SharpnessMonitor(), keep(), kind=Validated) == ["ModelCheckpoint"]
    assert told(SharpnessMonitor(), kind=Plateau) == ["ReduceLROnPlateau"]
    assert told(SharpnessMonitor(every_n_steps=3), kind=Plateau) == []
    # Read at the end of the second epoch alone.
    assert told(SharpnessMonitor(), kind=EverySecond, max_epochs=3) == []
    assert told(SharpnessMonitor(), kind=EverySecond, max_epochs=4) == ["ReduceLROnPlateau"]
    norm = ModelCheckpoint(tmp_path, monitor="grad_norm/mine/base", every_n_train_steps=1)
    with_old = told(GradientNormMonitor(every_n_steps=3, name="mine"), norm)
    assert with_old == ["ModelCheckpoint"]


def test_a_rule_has_its_own_pace(tmp_path: Path) -> None:
    """Steps without a second pass have no new fractions."""
    keep = ModelCheckpoint(tmp_path, monitor="ckpt_fraction/ckpt1", every_n_train_steps=1)
    with pytest.warns(UserWarning, match="CheckpointFractionMonitor: ModelCheckpoint reads 'ckpt_fraction/ckpt1' more"):
        fit(
            with_sam(build(Plain), SAM(0.1)),
            callbacks=[CheckpointFractionMonitor(every_n_steps=2), keep],
            enable_checkpointing=True,
        )
