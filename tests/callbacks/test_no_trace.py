"""The monitors of the two gradients disturb nothing, on one process and on two."""

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, observed_fit
from support.monitored import OWN, class_zero
from support.nets import Everything, build
from support.ranks import Ranks

from lightning_same import SAM, CheckpointFractionMonitor, GradientNormMonitor, with_sam
from lightning_same.callbacks.gradient_monitor import GradientMonitor


def all_options() -> list[GradientMonitor]:
    options: Any = {"every_n_steps": 1, "per_layer": True, "noisy_mask": class_zero, "prog_bar": True}
    return [CheckpointFractionMonitor(histogram=True, **options), GradientNormMonitor(**options)]


def observed(folder: Path, mixed: bool, monitors: list[GradientMonitor], **options: Any) -> dict[str, Any]:
    """A fit with validation and its sanity check, without the monitors' own values."""
    module = with_sam(build(Everything), SAM(0.3)) if mixed else build(Everything)
    seen = observed_fit(module, folder, callbacks=monitors, num_sanity_val_steps=2, **options)
    rows = [(step, row) for step, row in seen["rows"] if not any(key.startswith(OWN) for key in row)]
    assert len(seen["rows"]) - len(rows) == (len(monitors) * 12 // options.get("accumulate_grad_batches", 1))
    seen["rows"] = rows
    seen["metrics"] = {key: value for key, value in seen["metrics"].items() if not key.startswith(OWN)}
    return seen


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-scaled"])
@pytest.mark.parametrize("mixed", [True, False])
def test_they_disturb_nothing(tmp_path: Path, mixed: bool, precision: Any, accumulate: int) -> None:
    options: Any = {"precision": precision, "accumulate_grad_batches": accumulate}
    assert (
        differences(observed(tmp_path, mixed, [], **options), observed(tmp_path, mixed, all_options(), **options)) == []
    )


def observed_on_a_rank(mixed: bool, with_monitors: bool, strategy: dict[str, Any]) -> dict[str, Any]:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    reducer = {}

    class Reducer(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            model = trainer.strategy.model
            reducer["flags"] = (model.require_backward_grad_sync, model.require_forward_param_sync)
            data = model._get_ddp_logging_data()
            reducer["data"] = {key: value for key, value in data.items() if "time" not in key}

    monitors = all_options() if with_monitors else []
    with tempfile.TemporaryDirectory() as folder:
        module = with_sam(build(Everything), SAM(0.3)) if mixed else build(Everything)
        seen = observed_fit(
            module,
            Path(folder),
            save=rank == 0,
            devices=size,
            callbacks=[*monitors, Reducer()],
            strategy=DDPStrategy(process_group_backend="gloo", **strategy),
        )
    seen["rows"] = [(step, row) for step, row in seen["rows"] if not any(key.startswith(OWN) for key in row)]
    seen["metrics"] = {key: value for key, value in seen["metrics"].items() if not key.startswith(OWN)}
    return seen | {"reducer": reducer}


@pytest.mark.parametrize("strategy", [{}, {"find_unused_parameters": True, "gradient_as_bucket_view": True}], ids=str)
@pytest.mark.parametrize("mixed", [True, False])
def test_on_two_processes_they_disturb_nothing(ranks: dict[int, Ranks], mixed: bool, strategy: dict[str, Any]) -> None:
    without = ranks[2].run(observed_on_a_rank, mixed, False, strategy)
    assert without[0]["reducer"]["data"]["iteration"] > 0
    assert differences(without, ranks[2].run(observed_on_a_rank, mixed, True, strategy)) == []
