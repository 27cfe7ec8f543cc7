"""The monitor of the mechanism: against a net whose gradients are analytic, on processes, and without a trace."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import LIGHTNING, RowLogger, differences, fit, observed_fit, weights
from support.monitored import class_zero
from support.nets import Everything, build, float64, loader
from support.ranks import Ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_same import SAM, SAME, CheckpointEffectMonitor, GradientNormMonitor, with_sam
from lightning_same.experiments import DigitsData, ImageClassifier, SmallCNN

RHO = 0.3


class Softmax(pl.LightningModule):
    """A linear classifier of 6 features into 3 classes: grad = X^T (P - Y) / n."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, bias=False)

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.linear(x), y, reduction="none")

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch).mean())

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    @override
    def train_dataloader(self) -> Any:
        return loader(48, 8, self.dtype)

    @override
    def val_dataloader(self) -> Any:
        return loader(14, 8, self.dtype)  # The second batch is smaller.


def rows_of(mixed: bool, **options: Any) -> tuple[list[dict[str, float]], list[Tensor]]:
    with float64():
        module = with_sam(build(Softmax), SAM(RHO)) if mixed else build(Softmax)
        logger = RowLogger()
        monitor = CheckpointEffectMonitor(
            every_n_steps=1, noisy_mask=class_zero, rho=None if mixed else RHO, validation_batches=2
        )
        fit(module, callbacks=[monitor], logger=logger, max_epochs=1, num_sanity_val_steps=-1, **options)
        return [row for _, row in logger.rows if "ckpt_effect/whole/clean" in row], weights(module)


def ddp_rows(mixed: bool) -> tuple[list[dict[str, float]], list[Tensor]]:
    strategy = DDPStrategy(process_group_backend="gloo")
    return rows_of(mixed, devices=torch.distributed.get_world_size(), strategy=strategy)


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    logits = x @ w.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return ((p - np.eye(3)[y]) * mask[:, None]).T @ x / len(x)


def expected_rows(rho: float = RHO, mixed: bool = False) -> list[dict[str, float]]:
    """All that is logged in the first epoch, in numpy."""
    with float64():
        module = build(Softmax)
    w = module.linear.weight.detach().numpy().copy()
    val_x, val_y = (torch.cat(parts).numpy() for parts in zip(*loader(14, 8, torch.float64), strict=True))
    rows = []
    for batch_x, batch_y in loader(48, 8, torch.float64):
        x, y = batch_x.numpy(), batch_y.numpy()
        noisy = y == 0
        g_clean, g_noisy = gradient(w, x, y, ~noisy), gradient(w, x, y, noisy)
        g = g_clean + g_noisy
        moved = w + rho * g / np.linalg.norm(g)
        s_clean, s_noisy = gradient(moved, x, y, ~noisy), gradient(moved, x, y, noisy)
        s = s_clean + s_noisy
        validation = gradient(w, val_x, val_y, np.ones(len(val_y)))
        r = s / g
        masks = {"ckpt1": r > 1, "ckpt2": (r > 0) & (r < 1), "ckpt3": r < -1, "ckpt4": (r < 0) & (r > -1)}
        row = {}
        for name, mask in (masks | {"whole": np.full(g.shape, True)}).items():
            length = np.linalg.norm(s[mask])
            for loss, of in {"clean": g_clean, "noisy": g_noisy, "validation": validation}.items():
                row[f"ckpt_effect/{name}/{loss}"] = (s * of)[mask].sum() / length if length else 0.0
            if name != "whole":
                row[f"ckpt_share/{name}/noisy"] = (s * s_noisy)[mask].sum() / length**2 if length else 0.0
                dominated = (np.abs(g_noisy) > np.abs(g_clean))[mask]
                row[f"ckpt_dominated/{name}/noisy"] = dominated.mean() if mask.any() else 0.0
        for where, mask in {
            "clean_dominated": np.abs(g_clean) > np.abs(g_noisy),
            "noisy_dominated": np.abs(g_noisy) > np.abs(g_clean),
        }.items():
            for of, (a, b) in {"whole": (s, g), "clean": (s_clean, g_clean), "noisy": (s_noisy, g_noisy)}.items():
                total = np.abs(b[mask]).sum()
                row[f"ckpt_amplification/{where}/{of}"] = np.abs(a[mask]).sum() / total if total else 0.0
        rows.append(row)
        w = w - 0.1 * (s if mixed else g)
    return rows


@pytest.mark.parametrize("mixed", [True, False])
def test_all_values_are_those_of_the_analytic_gradients(mixed: bool) -> None:
    rows, _ = rows_of(mixed)
    expected = expected_rows(mixed=mixed)
    assert len(rows) == len(expected) == 6
    for row, by_hand in zip(rows, expected, strict=True):
        for name, number in by_hand.items():
            assert row[name] == pytest.approx(number, rel=0, abs=1e-12), name
        unknown = {name for name in row if "placebo" not in name and "rest" not in name and name.startswith("ckpt_")}
        assert unknown == by_hand.keys()
        for match in "count", "norm":
            assert {
                f"ckpt_placebo_{match}/ckpt{k}/{of}" for k in (1, 4) for of in ("clean", "validation")
            } <= row.keys()


class Opposed(Softmax):
    """L = w_1 (w_2 - 3) + w_2^2 / 2 at (0, 3). Clean and noisy samples pull w_1 apart: its g is 0, and its s is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        self.linear.weight.data = torch.tensor([[0.0, 3.0]])

    def losses(self, batch: Any) -> Tensor:
        first, second = self.linear.weight[0]
        loss = first * (second - 3) + second.square() / 2
        return loss + first * torch.where(class_zero(batch), -1, 1)

    def train_dataloader(self) -> Any:
        return DataLoader([[torch.zeros(2, 1), torch.tensor([0, 1])]], batch_size=None)


def test_elements_in_no_checkpoint_have_an_effect_too() -> None:
    monitor = CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero, rho=0.5, validation_batches=0)
    row = fit(Opposed(), callbacks=[monitor], max_steps=1, limit_val_batches=0).callback_metrics
    # g = (0, 3), e = (0, 1/2), s = (1/2, 7/2), g_clean = (1/2, 3/2), g_noisy = (-1/2, 3/2).
    length = (0.5**2 + 3.5**2) ** 0.5
    expected = {"rest/clean": 0.5, "rest/noisy": -0.5, "ckpt1/clean": 1.5, "ckpt1/noisy": 1.5}
    expected |= {"whole/clean": (0.25 + 5.25) / length, "whole/noisy": (-0.25 + 5.25) / length}
    assert {key: row[f"ckpt_effect/{key}"].item() for key in expected} == pytest.approx(expected)


def test_where_gradients_accumulate_the_first_batch_of_a_window_is_measured() -> None:
    rows, _ = rows_of(False, accumulate_grad_batches=2)
    assert len(rows) == 3
    first = expected_rows()[0]
    assert {name: rows[0][name] for name in first} == pytest.approx(first, rel=0, abs=1e-12)


def test_each_step_has_random_sets_of_its_own() -> None:
    class Still(Softmax):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def train_dataloader(self) -> Any:
            return loader(8, 8, self.dtype)

    logger = RowLogger()
    monitor = CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero)
    fit(build(Still), callbacks=[monitor], logger=logger, max_epochs=2, num_sanity_val_steps=-1)
    one, other = (row for _, row in logger.rows if "ckpt_effect/whole/clean" in row)
    differing = {key.split("/")[0] for key in one if key.startswith("ckpt_") and one[key] != other[key]}
    assert differing == {"ckpt_placebo_count", "ckpt_placebo_norm"}


def test_random_sets_follow_their_seed_and_validation_may_be_left_out() -> None:
    def first_row(**options: Any) -> dict[str, float]:
        logger = RowLogger()
        monitor = CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero, **options)
        fit(build(Softmax), callbacks=[monitor], logger=logger, max_steps=1, num_sanity_val_steps=-1)
        return next(row for _, row in logger.rows if "ckpt_effect/whole/clean" in row)

    row = first_row()
    assert row == first_row(placebo_seed=0)
    other = first_row(placebo_seed=1)
    differing = {key.split("/")[0] for key in row if row[key] != other[key]}
    assert differing == {"ckpt_placebo_count", "ckpt_placebo_norm"}
    without = first_row(validation_batches=0)
    assert without == {key: value for key, value in row.items() if not key.endswith("/validation")}
    assert len(without) < len(row)


def test_the_loss_on_validation_data_is_that_of_evaluation_mode() -> None:
    class Tenfold(Softmax):
        def losses(self, batch: Any) -> Tensor:
            return super().losses(batch) * (1 if self.training else 10)

    def first_row(kind: Any) -> dict[str, float]:
        logger = RowLogger()
        monitor = CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero)
        fit(build(kind), callbacks=[monitor], logger=logger, max_steps=1, num_sanity_val_steps=-1)
        return next(row for _, row in logger.rows if "ckpt_effect/whole/validation" in row)

    plain, tenfold = first_row(Softmax), first_row(Tenfold)
    for key, value in plain.items():
        if key.startswith("ckpt_"):
            factor = 10 if key.endswith("/validation") else 1
            assert tenfold[key] == pytest.approx(factor * value, rel=1e-5, abs=1e-7), key


def test_no_validation_batch_counts_twice_after_a_sanity_check() -> None:
    def last_row(sanity: int) -> dict[str, float]:
        logger = RowLogger()
        monitor = CheckpointEffectMonitor(every_n_epochs=1, noisy_mask=class_zero, validation_batches=2)
        fit(build(Softmax), callbacks=[monitor], logger=logger, max_epochs=2, num_sanity_val_steps=sanity)
        return next(row for _, row in reversed(logger.rows) if "ckpt_effect/whole/validation" in row)

    assert last_row(1) == last_row(0)


@pytest.mark.parametrize("mixed", [True, False])
def test_two_processes_log_what_one_does(ranks: dict[int, Ranks], mixed: bool) -> None:
    alone, ended = rows_of(mixed)
    (rows, w0), (none, w1) = ranks[2].run(ddp_rows, mixed)
    assert none == []  # rank zero logs
    assert differences(w0, w1) == []
    assert len(rows) == len(alone)
    for row, one in zip(rows, alone, strict=True):
        assert row.keys() == one.keys()
        for name in row:
            assert row[name] == pytest.approx(one[name], rel=0, abs=1e-12), name
    for a, b in zip(w0, ended, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_with_batchnorm_and_dropout_the_parts_still_sum_up() -> None:
    """The parts of one forward sum up to the gradients of the mean loss, which the other monitor has, and the
    checkpoints to the whole, to the last digits."""
    logger = RowLogger()
    pl.seed_everything(0, verbose=False)
    with float64():
        net = nn.Sequential(SmallCNN(8, width=4), nn.Dropout(0.3), nn.Linear(8, 10)).double()
        module = ImageClassifier(net, 10)
        data = DigitsData(noise_rate=0.4, augment=False, batch_size=200)
        pl.Trainer(
            accelerator="cpu",
            precision="64-true",
            max_epochs=1,
            logger=logger,
            callbacks=[
                CheckpointEffectMonitor(every_n_steps=1, rho=RHO),
                GradientNormMonitor(every_n_steps=1, rho=RHO),
            ],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)
    effects = [row for _, row in logger.rows if "ckpt_effect/whole/clean" in row]
    norms = [row for _, row in logger.rows if "grad_norm/perturbed" in row]
    assert len(effects) == len(norms) > 3
    assert all("ckpt_effect/ckpt1/validation" in row for row in effects)  # the sanity check has shown a batch
    digits = 1e-12 if LIGHTNING >= (2, 6) else 1e-7  # Lightning 2.5.1 logs in float32.
    for row, norm in zip(effects, norms, strict=True):
        assert 0 < row["ckpt_share/ckpt1/noisy"] < 1
        both = row["ckpt_effect/whole/clean"] + row["ckpt_effect/whole/noisy"]
        assert both == pytest.approx(norm["grad_cosine"] * norm["grad_norm/base"], rel=0, abs=digits)
        for loss in "clean", "noisy", "validation":
            parts = sum(row[f"ckpt_effect/ckpt{k}/{loss}"] * norm[f"grad_norm/ckpt{k}"] for k in (1, 2, 3, 4))
            whole = row[f"ckpt_effect/whole/{loss}"] * norm["grad_norm/perturbed"]
            assert parts == pytest.approx(whole, rel=0, abs=digits)  # the rest is where s and g are 0


def by_sample(module: Any, batch: Any) -> Tensor:
    """Losses of each sample that leave traces wherever a forward can."""
    x, y = batch
    x.add_(torch.rand(()))
    module.steps_seen += 1
    module.history.append(0.0)
    module.losses.update(torch.ones(()))
    module.log("never", 1.0)
    losses: Tensor = nn.functional.cross_entropy(module(x), y, reduction="none")
    return losses


@pytest.mark.parametrize("rule", [None, SAME(2, 0.5, rho=RHO)])
def test_training_is_bit_for_bit_what_it_is_without_the_monitor(rule: Any, tmp_path: Path) -> None:
    monitor = CheckpointEffectMonitor(every_n_steps=1, losses_fn=by_sample, noisy_mask=class_zero)
    runs = []
    for callbacks in [monitor], []:
        module = with_sam(build(Everything), rule)
        run = observed_fit(module, tmp_path, save=False, callbacks=callbacks, max_epochs=2, num_sanity_val_steps=2)
        measured = any("ckpt_share/ckpt1/noisy" in row for _, row in run["rows"])
        assert measured == bool(callbacks)
        runs.append({key: value for key, value in run.items() if key not in ("rows", "metrics")})
        logged = {key: value for key, value in run["metrics"].items() if not key.startswith("ckpt_")}
        runs[-1]["metrics"] = logged
    assert differences(*runs) == []


def test_a_module_without_losses_of_its_own_needs_a_function() -> None:
    with pytest.raises(RuntimeError, match=r"Everything has no `losses\(batch\)`.* `losses_fn\(module, batch\)`"):
        fit(build(Everything), callbacks=[CheckpointEffectMonitor(noisy_mask=class_zero)], max_epochs=1)


def test_what_is_not_one_value_per_sample_is_told() -> None:
    def mean(module: Any, batch: Any) -> Tensor:
        return module.losses(batch).mean()

    with pytest.raises(
        ValueError, match=r"`losses_fn` must return the loss of each sample, of shape \(n,\), got shape"
    ):
        fit(
            build(Softmax),
            callbacks=[CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero, losses_fn=mean)],
            max_epochs=1,
        )
    with pytest.raises(ValueError, match=r"one value for each sample, got shapes \(5,\) and \(8,\)"):
        fit(build(Softmax), callbacks=[CheckpointEffectMonitor(noisy_mask=lambda batch: batch[1][:5] == 0)])
    with pytest.raises(ValueError, match=r"`noisy_mask`, or else `batch.noisy`, must be a boolean tensor"):
        fit(build(Softmax), callbacks=[CheckpointEffectMonitor(every_n_steps=1)], max_epochs=1)


class Own:
    """A batch of a class that torch does not know."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: Any) -> "Own":
        return Own(self.x.to(device), self.y.to(device))


class Merging(Softmax):
    """Merges a part of its weights in evaluation mode, as LoRA's layers do, on batches of its own class."""

    def train(self, mode: bool = True) -> Any:
        if mode != self.training:
            self.linear.weight.data.add_(1.0, alpha=-1 if mode else 1)
        return super().train(mode)

    def losses(self, batch: Any) -> Tensor:
        return super().losses((batch.x, batch.y))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch).mean(), batch_size=len(batch.y))

    def train_dataloader(self) -> Any:
        return DataLoader([Own(x, y) for x, y in loader(48, 8, self.dtype)], batch_size=None, collate_fn=_passed_on)

    def val_dataloader(self) -> Any:
        return DataLoader([Own(x, y) for x, y in loader(16, 8, self.dtype)], batch_size=None, collate_fn=_passed_on)


def _passed_on(batch: Own) -> Own:
    return Own(batch.x + 0.0, batch.y + 0)  # made where the loop fetches it: for validation in inference mode


def test_evaluation_is_by_the_flags_alone_and_batches_may_be_of_any_class() -> None:
    def fitted(*monitors: Any) -> tuple[Any, dict[str, Tensor]]:
        made = fit(build(Merging), callbacks=list(monitors), max_epochs=1, num_sanity_val_steps=-1)
        return weights(made.lightning_module), made.callback_metrics

    plain, _ = fitted()
    watched, metrics = fitted(CheckpointEffectMonitor(every_n_steps=1, noisy_mask=lambda batch: batch.y == 0))
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert "ckpt_effect/whole/validation" in metrics


def test_batches_are_kept_for_a_fit_and_no_longer() -> None:
    monitor = CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero)
    module = build(Softmax)
    trainer = fit(module, callbacks=[monitor], max_epochs=1)
    assert "ckpt_effect/whole/validation" in trainer.callback_metrics
    assert monitor._kept == []
    trainer.validate(module, verbose=False)
    assert monitor._kept == []


def test_beside_a_compiled_module() -> None:
    def metrics(compiled: bool) -> dict[str, Tensor]:
        module = build(Softmax)
        if compiled:
            module.linear = torch.compile(module.linear, backend="aot_eager")
        monitor = CheckpointEffectMonitor(every_n_steps=1, noisy_mask=class_zero)
        return fit(module, callbacks=[monitor], max_steps=2).callback_metrics

    plain, compiled = metrics(False), metrics(True)
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(value, compiled[key])
