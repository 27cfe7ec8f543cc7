"""When the monitors of the two gradients measure, what that costs, and who reads their values."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.fits import RowLogger, differences, fit
from support.monitored import MONITORS, NORMS, STEP, class_zero, flat, rows_of
from support.nets import Plain, TwoOptimizers, build
from torch import Tensor

from lightning_same import SAM, CheckpointFractionMonitor, GradientNormMonitor, SAMMixin, with_sam
from lightning_same.callbacks.gradient_monitor import GradientMonitor


@pytest.mark.parametrize(
    ("monitors", "mixed", "plain"),
    [
        ([], 12, 6),
        ([CheckpointFractionMonitor(), GradientNormMonitor()], 12, 18),
        ([GradientNormMonitor(every_n_steps=3), CheckpointFractionMonitor(every_n_steps=2)], 12, 14),
        ([CheckpointFractionMonitor(rho=0.1), GradientNormMonitor()], 12, 30),
        ([CheckpointFractionMonitor(per_layer=True, histogram=True), GradientNormMonitor(per_layer=True)], 12, 18),
        ([CheckpointFractionMonitor(), GradientNormMonitor(noisy_mask=lambda batch: batch[1] == 0)], 48, 42),
        ([CheckpointFractionMonitor(noisy_mask=class_zero), GradientNormMonitor(noisy_mask=class_zero)], 48, 42),
    ],
)
def test_passes_are_counted(monitors: list[GradientMonitor], mixed: int, plain: int) -> None:
    """Six steps. A two-pass step is read for nothing; a probe is two passes for all monitors that can share it."""
    for module, expected in ((with_sam(build(Plain), SAM(0.3)), mixed), (build(Plain), plain)):
        calls: list[None] = []
        module.layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        rows_of(module, *monitors, max_epochs=1)
        assert len(calls) == expected


class Manual(SAMMixin, TwoOptimizers):
    def step(self, loss_fn: Any, optimizer: Any) -> None:
        self.two_pass_step(loss_fn, optimizer)


def test_in_manual_optimization_the_last_step_of_a_batch_is_logged() -> None:
    module = build(Manual)
    module.sam = SAM(0.3)
    norms = []

    class Last(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            params = list(pl_module.generator.parameters())
            norms.append([np.linalg.norm(flat(param.grad for param in params)), np.linalg.norm(flat(params))])

    logger = RowLogger()
    fit(module, callbacks=[GradientNormMonitor(every_n_steps=2), Last()], logger=logger)
    rows = [(step, row) for step, row in logger.rows if STEP[0] in row]
    assert [step for step, _ in rows] == [0, 2, 4, 6, 8, 10]
    for step, row in rows:
        assert [row[key] for key in STEP] == pytest.approx(norms[2 * step + 1], rel=1e-5)
        assert row["grad_norm/perturbed"] == pytest.approx(row["grad_norm/step"])


def test_groups_are_those_of_all_optimizers() -> None:
    logger = RowLogger()
    module = build(Manual)
    module.sam = SAM(0.3)
    norms = [np.linalg.norm(flat(part.parameters())) for part in (module.critic, module.generator)]
    fit(module, callbacks=[GradientNormMonitor(per_group=True)], logger=logger, max_steps=2)
    row = next(row for _, row in logger.rows if STEP[0] in row)
    assert row["weight_norm_group/pg1"] == pytest.approx(norms[0], rel=1e-6)
    # The critic has stepped before.
    assert row["weight_norm_group/pg2"] == row["weight_norm"] == pytest.approx(norms[1], rel=1e-6)
    assert row["grad_norm_group/pg2/base"] == row["grad_norm/base"]


def test_a_plain_manual_module_needs_a_loss_fn() -> None:
    with pytest.raises(RuntimeError, match=r"GradientNormMonitor: TwoOptimizers is in manual optimization.*`loss_fn"):
        rows_of(build(TwoOptimizers), GradientNormMonitor())

    def critic_loss(module: Any, batch: Any) -> Tensor:
        return module.critic_loss(batch[0], torch.randn(len(batch[0]), 2))

    plain, probed = build(TwoOptimizers), build(TwoOptimizers)
    fit(plain)
    rows = rows_of(probed, *(monitor(loss_fn=critic_loss, noisy_mask=class_zero) for monitor in MONITORS))
    assert len(rows) == 12
    assert {*NORMS, *STEP, "grad_norm_noisy/base"} < rows[0][1].keys()
    assert differences(dict(plain.state_dict()), dict(probed.state_dict())) == []


@pytest.mark.parametrize(("every", "accumulate", "steps"), [(1, 1, [0, 6, 12, 18]), (2, 3, [0, 4]), (3, 1, [0, 18])])
@pytest.mark.parametrize("mixed", [True, False])
def test_every_n_epochs_measures_the_first_step_of_an_epoch(
    mixed: bool, every: int, accumulate: int, steps: list[int]
) -> None:
    module = with_sam(build(Plain), SAM(0.3)) if mixed else build(Plain)
    monitors = [monitor(every_n_epochs=every) for monitor in MONITORS]
    rows = rows_of(module, *monitors, max_epochs=4, accumulate_grad_batches=accumulate)
    assert [step for step, _ in rows] == steps


def test_model_checkpoint_can_monitor_every_value(tmp_path: Path) -> None:
    for key in ("grad_norm/step", "grad_cosine", "grad_norm_layer/layers.0.weight/base", "ckpt_histogram/ckpt1/2-4"):
        keep = ModelCheckpoint(tmp_path, monitor=key, every_n_train_steps=1, filename="{step}")
        callbacks = [CheckpointFractionMonitor(histogram=True), GradientNormMonitor(per_layer=True), keep]
        fit(with_sam(build(Plain), SAM(0.3)), callbacks=callbacks, enable_checkpointing=True, max_steps=2)
        assert keep.best_model_score is not None


def test_the_progress_bar_shows_the_norms_if_asked() -> None:
    for asked in (True, False):
        made = fit(with_sam(build(Plain), SAM(0.3)), callbacks=[GradientNormMonitor(prog_bar=asked)])
        shown = {
            short: made.callback_metrics[f"grad_norm/{name}"].item()
            for short, name in {"|g|": "base", "|s|": "perturbed", "|d|": "step"}.items()
        }
        assert {k: v for k, v in made.progress_bar_metrics.items() if k in shown} == (shown if asked else {})


def test_a_resumed_run_measures_at_the_same_steps(tmp_path: Path) -> None:
    def monitor() -> GradientMonitor:
        return GradientNormMonitor(every_n_steps=4)

    whole = rows_of(with_sam(build(Plain), SAM(0.3)), monitor())
    half = with_sam(build(Plain), SAM(0.3))
    first = fit(half, max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    logger = RowLogger()
    resumed = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=logger,
        callbacks=[monitor()],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    resumed.fit(with_sam(build(Plain), SAM(0.3)), ckpt_path=tmp_path / "half.ckpt")
    rows = [(step, row) for step, row in logger.rows if "grad_cosine" in row]
    assert [step for step, _ in rows] == [8]
    assert rows[0][1] == dict(whole)[8]


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be a whole number >= 1, got 0"),
        ({"every_n_epochs": True}, "`every_n_epochs` must be a whole number >= 1, got True"),
        ({"every_n_epochs": 1, "every_n_steps": 2}, "give either `every_n_steps` or `every_n_epochs`.*got 2 and 1"),
        ({"rho": 0}, "`rho` must be a finite number > 0, got 0"),
        ({"noisy_mask": "label"}, "`noisy_mask` must be a function or None, got 'label'"),
    ],
)
def test_bad_options_are_named(monitor: Any, options: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"{monitor.__name__}: {complaint}"):
        monitor(**options)
