"""CheckpointFractionMonitor: what it logs, when, and that it disturbs nothing."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from support.fits import RowLogger, differences, fit, observed_fit
from support.nets import Everything, Plain, TwoOptimizers, build, float64
from support.ranks import Ranks

from lightning_same import SAM, SAME, CheckpointFractionMonitor, checkpoint_fractions, with_sam
from lightning_same.gradients.checkpoints import checkpoint_counts
from lightning_same.rules.timing import Every

NAMES = [f"ckpt_fraction/{name}" for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")]


def logged(module: Any, monitor: CheckpointFractionMonitor, **options: Any) -> list[tuple[int, list[float]]]:
    logger = RowLogger()
    fit(module, callbacks=[monitor], logger=logger, **options)
    return [(step, [row[name] for name in NAMES]) for step, row in logger.rows if NAMES[0] in row]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("rule", [SAM(0.3), SAME(1, 3.0, 0.3)], ids=repr)
def test_it_logs_the_fractions_of_the_step(rule: Any, accumulate: int) -> None:
    """Against the two gradients taken by autograd at the same weights, in a plain loop."""
    module = build(Plain)
    params = list(module.parameters())
    optimizer = module.configure_optimizers()
    expected = []
    batches = list(module.train_dataloader())
    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]

        def gradient(window: Any = window) -> Any:
            return torch.autograd.grad(sum(module.training_step(b, 0) / accumulate for b in window), params)

        g = gradient()
        with rule.perturbed(params, g):
            s = gradient()
        expected.append([value.item() for value in checkpoint_fractions(g, s)])
        for param, d in zip(params, rule.combine(g, s), strict=True):
            param.grad = d
        optimizer.step()
    rows = logged(
        with_sam(build(Plain), rule), CheckpointFractionMonitor(), accumulate_grad_batches=accumulate, max_epochs=1
    )
    assert len(rows) == len(expected)
    for (_, found), wanted in zip(rows, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
        assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize(("every", "steps"), [(1, 12), (5, 3), (100, 1), (None, 4)])
def test_every_n_steps_throttles_the_computing(every: int | None, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(1)
        return checkpoint_counts(*args)

    monkeypatch.setattr("lightning_same.callbacks.checkpoint_fractions.checkpoint_counts", counted)
    rows = logged(with_sam(build(Plain), SAM(0.3)), CheckpointFractionMonitor(every_n_steps=every), log_every_n_steps=3)
    assert len(calls) == len(rows) == steps


def test_steps_without_a_second_pass_log_nothing() -> None:
    rows = logged(with_sam(build(Plain), SAM(0.3, timing=Every(4))), CheckpointFractionMonitor())
    assert [step for step, _ in rows] == [0, 4, 8]


def test_it_disturbs_nothing(tmp_path: Any) -> None:
    def run(callbacks: list[Any]) -> dict[str, Any]:
        module = with_sam(build(Everything), SAM(0.3))
        return without_own_rows(observed_fit(module, tmp_path, callbacks=callbacks))

    assert differences(run([]), run([CheckpointFractionMonitor()])) == []


def test_on_a_plain_module_it_takes_the_gradients_itself() -> None:
    module = build(Plain)
    params = list(module.parameters())
    optimizer = module.configure_optimizers()
    expected = []
    for batch in module.train_dataloader():
        g = torch.autograd.grad(module.training_step(batch, 0), params)
        with SAM(0.3).perturbed(params, g):
            s = torch.autograd.grad(module.training_step(batch, 0), params)
        expected.append([value.item() for value in checkpoint_fractions(g, s)])
        for param, d in zip(params, g, strict=True):
            param.grad = d
        optimizer.step()
    rows = logged(build(Plain), CheckpointFractionMonitor(rho=0.3), max_epochs=1)
    assert [found for _, found in rows] == [pytest.approx(wanted, abs=1e-6) for wanted in expected]


def without_own_rows(seen: dict[str, Any]) -> dict[str, Any]:
    seen["rows"] = [(step, row) for step, row in seen["rows"] if NAMES[0] not in row]
    seen["metrics"] = {k: v for k, v in seen["metrics"].items() if k not in NAMES}
    return seen


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-scaled"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_on_a_plain_module_it_disturbs_nothing(tmp_path: Any, accumulate: int, precision: Any) -> None:
    options: Any = {"accumulate_grad_batches": accumulate, "precision": precision}
    plain = observed_fit(build(Everything), tmp_path, **options)
    monitor = CheckpointFractionMonitor(every_n_steps=1)
    probed = observed_fit(build(Everything), tmp_path, callbacks=[monitor], **options)
    assert sum(NAMES[0] in row for _, row in probed["rows"]) == 12 // accumulate
    assert differences(without_own_rows(plain), without_own_rows(probed)) == []


def fractions_of_a_fit() -> list[float]:
    with float64():
        options: Any = {}
        if torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            options = {"devices": size, "strategy": DDPStrategy(process_group_backend="gloo")}
        made = fit(build(Plain), callbacks=[CheckpointFractionMonitor(rho=0.3)], **options)
    return [made.callback_metrics[name].item() for name in NAMES]


def observe_plain(with_monitor: bool) -> dict[str, Any]:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    callbacks = [CheckpointFractionMonitor(every_n_steps=1)] if with_monitor else []
    strategy = DDPStrategy(process_group_backend="gloo")
    with tempfile.TemporaryDirectory() as folder:
        seen = observed_fit(
            build(Everything), Path(folder), save=rank == 0, devices=size, strategy=strategy, callbacks=callbacks
        )
    return without_own_rows(seen)


def test_on_two_processes_it_disturbs_nothing_and_sees_the_whole_batch(ranks: dict[int, Ranks]) -> None:
    assert differences(ranks[2].run(observe_plain, False), ranks[2].run(observe_plain, True)) == []
    two = ranks[2].run(fractions_of_a_fit)
    assert two[0] == two[1] == pytest.approx(fractions_of_a_fit())


def test_manual_optimization_needs_a_loss_fn() -> None:
    with pytest.raises(RuntimeError, match=r"TwoOptimizers is in manual optimization.*`loss_fn\(module, batch\)`"):
        logged(build(TwoOptimizers), CheckpointFractionMonitor())

    def critic_loss(module: Any, batch: Any) -> torch.Tensor:
        return module.critic_loss(batch[0], torch.randn(len(batch[0]), 2))

    plain, probed = build(TwoOptimizers), build(TwoOptimizers)
    fit(plain)
    rows = logged(probed, CheckpointFractionMonitor(loss_fn=critic_loss))
    assert len(rows) == 12
    assert differences(dict(plain.state_dict()), dict(probed.state_dict())) == []


def test_a_loss_of_none_is_not_measured() -> None:
    class Skips(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    assert [step for step, _ in logged(build(Skips), CheckpointFractionMonitor(), max_epochs=1)] == [0, 2, 3, 4, 5]


def test_probing_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(Plain):
        def training_step(self, batch: Any) -> Any:
            self.print("step")
            for logger in self.loggers:
                logger.log_metrics({"direct": 1.0})
            self.log("loss", 1.0)
            return {"loss": super().training_step(batch, 0)}

    logger = RowLogger()
    fit(build(Loud), max_steps=3, logger=logger, callbacks=[CheckpointFractionMonitor()])
    assert capsys.readouterr().out.count("step\n") == 3
    assert sum("direct" in row for _, row in logger.rows) == 3


def test_the_progress_bar_shows_them_if_asked() -> None:
    for asked in (True, False):
        made = fit(with_sam(build(Plain), SAM(0.3)), callbacks=[CheckpointFractionMonitor(prog_bar=asked)])
        shown = {f"ckpt{k}": made.callback_metrics[f"ckpt_fraction/ckpt{k}"].item() for k in (1, 2, 3, 4)}
        assert {k: v for k, v in made.progress_bar_metrics.items() if k in shown} == (shown if asked else {})


def test_model_checkpoint_can_monitor_it(tmp_path: Any) -> None:
    keep = ModelCheckpoint(tmp_path, monitor=NAMES[1], every_n_train_steps=2)
    fit(
        with_sam(build(Plain), SAM(0.3)),
        callbacks=[CheckpointFractionMonitor(every_n_steps=2), keep],
        enable_checkpointing=True,
    )
    assert keep.best_model_score is not None


@pytest.mark.parametrize("every", [0, -1, 1.5, "1", True])
def test_bad_options_are_named(every: Any) -> None:
    with pytest.raises(ValueError, match="`every_n_steps` must be a whole number >= 1, got"):
        CheckpointFractionMonitor(every_n_steps=every)


@pytest.mark.parametrize("rho", [0, -1, float("nan"), "0.1"])
def test_bad_radii_are_named(rho: Any) -> None:
    with pytest.raises(ValueError, match="`rho` must be a finite number > 0, got"):
        CheckpointFractionMonitor(rho=rho)
