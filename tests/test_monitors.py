"""GradientNormMonitor, and what the monitors of the two gradients have in common."""

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from nets import Everything, Plain, RowLogger, TwoOptimizers, build, differences, fit, float64, observed_fit
from ranks import Ranks
from test_sharded import Sharded, strategy, whole
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_same import SAM, SAME, CheckpointFractionMonitor, GradientNormMonitor, LookSAM, SAMMixin, with_sam
from lightning_same.callbacks.gradient_monitor import GradientMonitor

GROUPS = ("ckpt1", "ckpt2", "ckpt3", "ckpt4")
NORMS = [f"grad_norm/{name}" for name in ("base", "perturbed", *GROUPS)] + ["grad_cosine"]
STEP = ["grad_norm/step", "weight_norm"]
MONITORS = (CheckpointFractionMonitor, GradientNormMonitor)
OWN = ("ckpt_", "grad_norm", "grad_cosine", "weight_norm")


def rows_of(module: Any, *monitors: GradientMonitor, **options: Any) -> list[tuple[int, dict[str, float]]]:
    """The monitors' own rows, those of one step together."""
    logger = RowLogger()
    fit(module, callbacks=list(monitors), logger=logger, **options)
    rows = [(step, row) for step, row in logger.rows if any(key.startswith(OWN) for key in row)]
    steps: dict[int, dict[str, float]] = {}
    for step, row in rows:
        steps.setdefault(step, {}).update(row)
    assert all([step for step, _ in rows].count(step) <= len(monitors) for step in steps)
    return list(steps.items())


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).numpy()


def measured(params: Any, g: Any, s: Any, d: Any) -> dict[str, float]:
    """All values in numpy and float64."""
    w, g, s, d = map(flat, (params, g, s, d))
    norm = np.linalg.norm
    larger = np.abs(s) > np.abs(g)
    smaller = np.abs(s) < np.abs(g)
    masks = [(g * s > 0) & larger, (g * s > 0) & smaller, (g * s < 0) & larger, (g * s < 0) & smaller]
    values = [norm(g), norm(s), *(norm(s[mask]) for mask in masks), g @ s / (norm(g) * norm(s)), norm(d), norm(w)]
    return dict(zip(NORMS + STEP, values, strict=True))


def by_hand(rule: Any, accumulate: int, two_pass: bool) -> list[dict[str, float]]:
    """A plain loop by autograd. Without a rule g and s are those of the first batch of a window, and d = g of all."""
    module = build(Plain)
    params, optimizer = list(module.parameters()), module.configure_optimizers()
    batches = list(module.train_dataloader())
    expected = []
    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]

        def gradient(window: Any) -> Any:
            return torch.autograd.grad(sum(module.training_step(b, 0) for b in window) / len(window), params)

        g = whole = gradient(window)
        if not two_pass:
            g = gradient(window[:1])
        with rule.perturbed(params, g):
            s = gradient(window if two_pass else window[:1])
        d = rule.combine(g, s) if two_pass else whole
        expected.append(measured(params, g, s, d))
        for param, grad in zip(params, d, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return expected


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("rule", [SAM(0.3), SAME(1, 3.0, 0.3), None], ids=repr)
def test_it_logs_the_norms_of_the_step(rule: Any, accumulate: int) -> None:
    expected = by_hand(rule or SAM(0.3), accumulate, two_pass=rule is not None)
    module = build(Plain) if rule is None else with_sam(build(Plain), rule)
    rows = rows_of(module, GradientNormMonitor(rho=0.3), accumulate_grad_batches=accumulate, max_epochs=1)
    assert [row for _, row in rows] == [pytest.approx(each, rel=2e-5) for each in expected]
    assert [step for step, _ in rows] == list(range(6 // accumulate))


@pytest.mark.parametrize("rule", [SAM(0.3), None], ids=repr)
def test_no_norm_holds_the_loss_scale(rule: Any) -> None:
    def first_row(precision: Any) -> dict[str, float]:
        module = build(Plain) if rule is None else with_sam(build(Plain), rule)
        monitor = GradientNormMonitor(rho=0.3, per_layer=True)
        return rows_of(module, monitor, precision=precision, max_steps=1)[0][1]

    exact = first_row("32-true")
    for precision in ("16-scaled", "bf16-mixed"):
        found = first_row(precision)
        large = {key: value for key, value in exact.items() if value > 0.1}
        assert len(large) > 10
        assert {key: found[key] for key in large} == pytest.approx(large, rel=0.1)


def test_the_step_is_measured_before_clipping() -> None:
    def first_row(**options: Any) -> dict[str, float]:
        return rows_of(with_sam(build(Plain), SAM(0.3)), GradientNormMonitor(), max_steps=1, **options)[0][1]

    assert first_row(gradient_clip_val=1e-3) == first_row()


class Quadratic(pl.LightningModule):
    """L(w) = w A w / 2 with a known Hessian A, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(300, 300, generator=generator, dtype=torch.float64)
        self.hessian = (root + root.T) / 2
        self.w = nn.Parameter(torch.randn(300, generator=generator, dtype=torch.float64))

    def training_step(self, batch: Any) -> Tensor:
        return self.w @ self.hessian @ self.w / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(4, 1))


@pytest.mark.parametrize("mixed", [True, False])
def test_on_a_quadratic_the_values_are_those_of_the_closed_form(mixed: bool) -> None:
    """g = A w and s = A (w + rho g / |g|), so r - 1 = rho (A g) / (g |g|): no gradient is taken here."""
    rho = 3.0
    module = Quadratic()
    hessian, w = module.hessian.numpy(), module.w.detach().numpy().copy()
    rows = rows_of(
        with_sam(module, SAM(rho)) if mixed else module,
        *(monitor(rho=rho) for monitor in MONITORS),
        max_epochs=1,
    )
    assert len(rows) == 4
    for _, row in rows:
        g = hessian @ w
        r = 1 + rho * (hessian @ g) / (g * np.linalg.norm(g))
        s = r * g
        masks = [r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)]
        assert all(mask.any() for mask in masks)
        assert [row[f"ckpt_fraction/{name}"] for name in GROUPS] == [mask.mean() for mask in masks]
        assert [row[f"grad_norm/{name}"] for name in GROUPS] == pytest.approx([np.linalg.norm(s[m]) for m in masks])
        assert row["grad_cosine"] == pytest.approx(g @ s / np.linalg.norm(g) / np.linalg.norm(s))
        assert row["weight_norm"] == pytest.approx(np.linalg.norm(w))
        w -= 1e-3 * (s if mixed else g)


@pytest.mark.parametrize(
    ("monitors", "mixed", "plain"),
    [
        ([], 12, 6),
        ([CheckpointFractionMonitor(), GradientNormMonitor()], 12, 18),
        ([GradientNormMonitor(every_n_steps=3), CheckpointFractionMonitor(every_n_steps=2)], 12, 14),
        ([CheckpointFractionMonitor(rho=0.1), GradientNormMonitor()], 12, 30),
        ([CheckpointFractionMonitor(per_layer=True, histogram=True), GradientNormMonitor(per_layer=True)], 12, 18),
        ([CheckpointFractionMonitor(), GradientNormMonitor(noisy_mask=lambda batch: batch[1] == 0)], 48, 42),
    ],
)
def test_passes_are_counted(monitors: list[GradientMonitor], mixed: int, plain: int) -> None:
    """Six steps. A two-pass step is read for nothing; a probe is two passes for all monitors that can share it."""
    for module, expected in ((with_sam(build(Plain), SAM(0.3)), mixed), (build(Plain), plain)):
        calls: list[None] = []
        module.layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        rows_of(module, *monitors, max_epochs=1)
        assert len(calls) == expected


@pytest.mark.parametrize("mixed", [True, False])
def test_both_gradients_see_the_same_random_numbers_and_buffers(mixed: bool) -> None:
    """With a tiny rho nothing else is left that could part them: dropout, spectral norm, a generator, numpy, random."""
    module = with_sam(build(Everything), SAM(1e-5)) if mixed else build(Everything)
    rows = rows_of(module, GradientNormMonitor(rho=1e-5, noisy_mask=class_zero), max_epochs=1)
    cosines = [value for _, row in rows for key, value in row.items() if "cosine" in key]
    assert len(cosines) == 3 * 6
    assert min(cosines) > 0.999


def test_sharing_a_probe_changes_no_value() -> None:
    alone = [rows_of(build(Plain), monitor(), max_epochs=1) for monitor in MONITORS]
    together = rows_of(build(Plain), *(monitor() for monitor in MONITORS), max_epochs=1)
    assert together == [(step, one | two) for (step, one), (_, two) in zip(*alone, strict=True)]


def test_steps_without_a_second_pass_have_a_step_and_weights() -> None:
    rows = rows_of(with_sam(build(Plain), LookSAM(0.3, k=3)), GradientNormMonitor(), max_epochs=1)
    assert [sorted(row) for _, row in rows] == 2 * [sorted(NORMS + STEP), sorted(STEP), sorted(STEP)]


@pytest.mark.parametrize("mixed", [True, False])
def test_values_per_layer_sum_up_to_the_total(mixed: bool) -> None:
    module = with_sam(build(Plain), SAM(0.3)) if mixed else build(Plain)
    sizes = {name: param.numel() for name, param in module.named_parameters()}
    rows = rows_of(module, *(monitor(per_layer=True) for monitor in MONITORS))
    assert len(sizes) == 4
    for _, row in rows:
        for group in (*GROUPS, "rest"):
            counts = [size * row[f"ckpt_fraction_layer/{name}/{group}"] for name, size in sizes.items()]
            assert counts == pytest.approx([round(count) for count in counts])
            assert sum(counts) / sum(sizes.values()) == pytest.approx(row[f"ckpt_fraction/{group}"])
        for value in ("base", "perturbed", "step", *GROUPS):
            squares = [row[f"grad_norm_layer/{name}/{value}"] ** 2 for name in sizes]
            assert sum(squares) ** 0.5 == pytest.approx(row[f"grad_norm/{value}"])
        assert sum(row[f"weight_norm_layer/{name}"] ** 2 for name in sizes) ** 0.5 == pytest.approx(row["weight_norm"])
        assert all(-1 <= row[f"grad_cosine_layer/{name}"] <= 1 for name in sizes)


def test_bins_sum_up_to_their_checkpoint() -> None:
    rows = rows_of(with_sam(build(Plain), SAM(0.3)), CheckpointFractionMonitor(histogram=True))
    for _, row in rows:
        for group in GROUPS:
            bins = {key.removeprefix(f"ckpt_histogram/{group}/"): v for key, v in row.items() if f"am/{group}" in key}
            assert list(bins) == ["1-1.2", "1.2-1.5", "1.5-2", "2-4", "4-8", "8-16", "16-inf"]
            assert sum(bins.values()) == pytest.approx(row[f"ckpt_fraction/{group}"])


def class_zero(batch: Any) -> Tensor:
    return batch[1] == 0


def noisy_rows(mixed: bool = False, **options: Any) -> list[dict[str, float]]:
    with float64():
        module = with_sam(build(Plain), SAM(0.3)) if mixed else build(Plain)
        monitors = [monitor(noisy_mask=class_zero, rho=0.3) for monitor in MONITORS]
        return [row for _, row in rows_of(module, *monitors, max_epochs=1, **options)]


@pytest.mark.parametrize("mixed", [True, False])
def test_clean_and_noisy_samples_are_measured_apart(mixed: bool) -> None:
    """Against autograd on the samples alone, at the w + e of the whole batch."""
    with float64():
        module = build(Plain)
    params, optimizer = list(module.parameters()), module.configure_optimizers()
    rows = noisy_rows(mixed)
    assert len(rows) == 6
    for batch, row in zip(module.train_dataloader(), rows, strict=True):
        x, y = (tensor.to(torch.float64) if tensor.is_floating_point() else tensor for tensor in batch)

        def gradient(mask: Any, x: Any = x, y: Any = y) -> Any:
            return torch.autograd.grad(nn.functional.cross_entropy(module(x[mask]), y[mask]), params)

        masks = {"": y >= 0, "_clean": y != 0, "_noisy": y == 0}
        assert all(mask.sum() >= 2 for mask in masks.values())
        g = {of: gradient(mask) for of, mask in masks.items()}
        with SAM(0.3).perturbed(params, g[""]):
            s = {of: gradient(mask) for of, mask in masks.items()}
        for of in masks:
            expected = measured(params, g[of], s[of], s[of])
            for name, value in expected.items():
                if name not in STEP:
                    head, _, tail = name.partition("/")
                    assert row[f"{head}{of}/{tail}".rstrip("/")] == pytest.approx(value)
            assert sum(row[f"ckpt_fraction{of}/{name}"] for name in (*GROUPS, "rest")) == pytest.approx(1)
        n, clean = len(y), int(masks["_clean"].sum())
        union = [(clean * a + (n - clean) * b) / n for a, b in zip(s["_clean"], s["_noisy"], strict=True)]
        assert np.linalg.norm(flat(union)) == pytest.approx(row["grad_norm/perturbed"])
        for param, d in zip(params, (s if mixed else g)[""], strict=True):
            param.grad = d
        optimizer.step()


def noisy_rows_of_a_rank(mixed: bool) -> list[dict[str, float]]:
    size = torch.distributed.get_world_size()
    return noisy_rows(mixed, devices=size, strategy=DDPStrategy(process_group_backend="gloo"))


@pytest.mark.parametrize("mixed", [True, False])
def test_on_two_processes_a_part_is_all_its_samples_everywhere(ranks: dict[int, Ranks], mixed: bool) -> None:
    """Ragged: the processes hold different numbers of noisy samples. Rank zero alone logs."""
    rows, silent = ranks[2].run(noisy_rows_of_a_rank, mixed)
    assert silent == []
    one = noisy_rows(mixed)
    assert len(rows) == len(one)
    for two_processes, one_process in zip(rows, one, strict=True):
        assert two_processes == pytest.approx(one_process)


def test_a_part_that_is_nowhere_is_not_logged_and_the_batchs_other_fields_are_cut_too() -> None:
    """The mask may change from batch to batch; batches may be nested and hold more than samples."""
    seen = []

    class Nested(Plain):
        def training_step(self, batch: Any) -> Tensor:
            seen.append((len(batch["xy"][0]), len(batch["xy"][1]), batch["note"], batch["weights"].shape))
            return super().training_step(batch["xy"], 0)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"xy": tuple(batch), "note": "kept", "weights": torch.ones(3)}

    def mask(batch: Any) -> Tensor:
        noisy = torch.zeros(8, dtype=torch.bool)
        noisy[: 3 * (len(rows_seen) % 2)] = True
        rows_seen.append(1)
        return noisy

    rows_seen: list[int] = []
    rows = rows_of(build(Nested), CheckpointFractionMonitor(noisy_mask=mask), max_steps=2)
    assert [any("noisy" in key for key in row) for _, row in rows] == [False, True]
    assert all("ckpt_fraction_clean/ckpt1" in row for _, row in rows)
    assert set(seen) == {(n, n, "kept", (3,)) for n in (8, 5, 3)}


def test_batch_norm_gets_no_lone_sample() -> None:
    def first(batch: Any) -> Tensor:
        return torch.arange(len(batch[1])) == 0

    for kind, logged in ((Everything, False), (Plain, True)):
        rows = rows_of(build(kind), GradientNormMonitor(noisy_mask=first), max_steps=1)
        assert ("grad_cosine_noisy" in rows[0][1]) is logged
        assert "grad_cosine_clean" in rows[0][1]


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (lambda batch: batch[1], r"boolean tensor with one element per sample, got torch.int64 of shape \(8,\)"),
        (lambda batch: batch[0] > 0, r"got torch.bool of shape \(8, 6\)"),
        (lambda batch: [True], r"got \[True\]"),
        (lambda batch: batch[1][:5] >= 0, "returned 5 elements, but the batch, a list, holds no tensor of that length"),
    ],
)
def test_a_mask_that_is_none_is_named(mask: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rows_of(build(Plain), CheckpointFractionMonitor(noisy_mask=mask))


def test_synchronized_batch_norm_excludes_parts() -> None:
    module = with_sam(build(Everything), SAM(0.3))
    module.layers[1] = nn.SyncBatchNorm(12)
    with pytest.raises(RuntimeError, match="SyncBatchNorm layers, which mix the samples of all processes"):
        rows_of(module, GradientNormMonitor(noisy_mask=class_zero))


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


def last_values(mixed: bool) -> dict[str, float]:
    with float64():
        options: Any = {}
        if torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            options = {"devices": size, "strategy": DDPStrategy(process_group_backend="gloo")}
        module = with_sam(build(Plain), SAM(0.3)) if mixed else build(Plain)
        made = fit(module, callbacks=[monitor(rho=0.3, per_layer=True) for monitor in MONITORS], **options)
    return {name: value.item() for name, value in made.callback_metrics.items()}


@pytest.mark.parametrize("mixed", [True, False])
def test_every_rank_holds_the_values_of_the_whole_batch(ranks: dict[int, Ranks], mixed: bool) -> None:
    one, two = ranks[2].run(last_values, mixed)
    assert one == two == pytest.approx(last_values(mixed))


def over_shards(mixed: bool, monitored: bool = True) -> tuple[list[dict[str, float]], list[Tensor]]:
    """The rows, and the weights at the end."""
    monitors = [CheckpointFractionMonitor(per_layer=True, histogram=True), GradientNormMonitor(per_layer=True)]
    options = strategy() if torch.distributed.is_initialized() else {}
    module = with_sam(build(Sharded), SAM(0.3)) if mixed else build(Sharded)
    rows = rows_of(module, *(monitors if monitored else []), max_epochs=1, **options)
    return [row for _, row in rows], whole(module)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("mixed", [True, False])
def test_over_shards_the_values_are_those_of_the_whole(ranks: dict[int, Ranks], mixed: bool, size: int) -> None:
    """FSDP2: every process holds a part of each parameter, and on 4 of them some hold none of one."""
    expected, _ = over_shards(mixed)
    (rows, weights), *others = ranks[size].run(over_shards, mixed)
    assert not any(more for more, _ in others)
    assert [*map(dict, rows)] == [pytest.approx(row, rel=1e-4, abs=1e-7) for row in expected]
    if not mixed:
        # Nothing is disturbed, and `.grad` is as it was.
        assert differences(weights, ranks[size].run(over_shards, mixed, False)[0][1]) == []


def parts_over_shards() -> None:
    monitor = CheckpointFractionMonitor(noisy_mask=lambda batch: batch[1] == 0)
    with pytest.raises(RuntimeError, match="not every process has as many clean and noisy samples in every batch"):
        fit(build(Sharded), callbacks=[monitor], **strategy())


def test_parts_of_batches_are_refused_over_shards(ranks: dict[int, Ranks]) -> None:
    ranks[2].run(parts_over_shards)


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
        (
            {"every_n_epochs": 1, "every_n_steps": 2},
            "give either `every_n_steps` or `every_n_epochs`, not both; got 2 and 1",
        ),
        ({"rho": 0}, "`rho` must be a finite number > 0, got 0"),
        ({"noisy_mask": "label"}, "`noisy_mask` must be a function of the batch, got 'label'"),
    ],
)
def test_bad_options_are_named(monitor: Any, options: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"{monitor.__name__}: {complaint}"):
        monitor(**options)


class HeadOnly(Plain):
    """The optimizer steps the last layer alone; the first can be trained too."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layers[2].parameters(), lr=0.1)


class Idle(Plain):
    """The optimizer steps a layer that no batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(20, 20)


class Loose(Plain):
    """The optimizer steps a tensor that is no parameter of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loose = [torch.full((3,), 0.5, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.loose[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.parameters(), *self.loose], lr=0.1)


class Checkpointed(Plain):
    """A reentrant activation checkpoint: what it calls is not in the graph."""

    hits = 0

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(10, 10)

    def on_fit_start(self) -> None:
        def heard(_: Tensor) -> None:
            self.hits += 1

        for param in self.parameters():
            param.register_post_accumulate_grad_hook(heard)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[1](self.layers[0](x))
        return self.layers[2](checkpoint(lambda z: torch.tanh(self.middle(z)), h, use_reentrant=True))


class CheckpointedFirst(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda z: torch.tanh(self.layers[0](z)), x.requires_grad_(), use_reentrant=True)
        return self.layers[2](torch.tanh(self.middle(h)))


def first_row(kind: Any, mixed: bool) -> dict[str, float]:
    with float64():
        options: Any = {}
        if torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            unused = not issubclass(kind, Checkpointed)
            ddp = DDPStrategy(process_group_backend="gloo", find_unused_parameters=unused)
            options = {"devices": size, "strategy": ddp}
        module = with_sam(build(kind), SAM(0.3)) if mixed else build(kind)
        rows = rows_of(module, *(monitor(rho=0.3) for monitor in MONITORS), max_steps=1, **options)
    return rows[0][1] if rows else {}


@pytest.mark.parametrize("kind", [Plain, HeadOnly, Idle, Loose, Checkpointed, CheckpointedFirst])
def test_a_plain_module_and_one_with_a_rule_are_measured_alike(kind: Any) -> None:
    """Over the parameters that the optimizer steps and the batch reaches."""
    plain, mixed = first_row(kind, False), first_row(kind, True)
    assert {*NORMS, *STEP, "ckpt_fraction/rest"} < plain.keys()
    # The step of a plain module is g, that of the rule s.
    assert plain.pop(STEP[0]) == pytest.approx(plain["grad_norm/base"])
    assert mixed.pop(STEP[0]) == pytest.approx(plain["grad_norm/perturbed"])
    assert plain == pytest.approx(mixed)


@pytest.mark.parametrize("kind", [HeadOnly, Idle, Checkpointed])
def test_on_two_processes_they_are_measured_alike(ranks: dict[int, Ranks], kind: Any) -> None:
    for mixed in (False, True):
        assert ranks[2].run(first_row, kind, mixed) == [pytest.approx(first_row(kind, mixed)), {}]


@pytest.mark.parametrize("kind", [Checkpointed, CheckpointedFirst])
def test_beside_a_reentrant_checkpoint_they_disturb_nothing(kind: Any) -> None:
    ends = []
    for monitors in ([], [GradientNormMonitor()]):
        module = build(kind)
        fit(module, callbacks=list(monitors), accumulate_grad_batches=2)
        ends.append([module.hits, dict(module.state_dict()), [param.grad for param in module.parameters()]])
    assert ends[0][0] == 6 * 12
    assert differences(*ends) == []


def checkpointed_on_a_rank(monitored: bool) -> Any:
    module = build(Checkpointed)
    options: Any = {"gradient_as_bucket_view": True, "process_group_backend": "gloo"}
    size = torch.distributed.get_world_size()
    monitors = [GradientNormMonitor()] if monitored else []
    fit(module, callbacks=list(monitors), devices=size, strategy=DDPStrategy(**options), accumulate_grad_batches=2)
    return dict(module.state_dict())


def test_on_two_processes_beside_a_reentrant_checkpoint_they_disturb_nothing(ranks: dict[int, Ranks]) -> None:
    without, with_monitor = (ranks[2].run(checkpointed_on_a_rank, monitored) for monitored in (False, True))
    assert differences(without, with_monitor) == []


class Gathers(Plain):
    """Its forward waits for the other processes."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(torch.ones(1))
        return super().training_step(batch, batch_idx)


def rank_zeros_parts() -> list[dict[str, float]]:
    def noisy(batch: Any) -> Tensor:
        return (batch[1] == 0) & (torch.distributed.get_rank() == 0)

    with float64():
        monitor = GradientNormMonitor(noisy_mask=noisy, rho=0.3)
        size = torch.distributed.get_world_size()
        ddp = DDPStrategy(process_group_backend="gloo")
        return [row for _, row in rows_of(build(Gathers), monitor, max_epochs=1, devices=size, strategy=ddp)]


def test_a_process_without_samples_of_a_kind_meets_the_others_in_the_forward(ranks: dict[int, Ranks]) -> None:
    rows, _ = ranks[2].run(rank_zeros_parts)
    with float64():
        module = build(Plain)
        x, y = next(iter(module.train_dataloader()))
        mine = torch.arange(len(y)) % 2 == 0  # A rank reads every second sample.
        loss = nn.functional.cross_entropy(module(x[mine & (y == 0)]), y[mine & (y == 0)])
        expected = np.linalg.norm(flat(torch.autograd.grad(loss, list(module.parameters()))))
    assert rows[0]["grad_norm_noisy/base"] == pytest.approx(expected)


@pytest.mark.parametrize("mixed", [True, False])
def test_a_tensor_that_the_module_does_not_know_has_no_values_of_its_own(mixed: bool) -> None:
    module = with_sam(build(Loose), SAM(0.3)) if mixed else build(Loose)
    row = rows_of(module, *(monitor(per_layer=True) for monitor in MONITORS), max_steps=1)[0][1]
    named = {name for name, _ in module.named_parameters()}
    for head, tail in (("grad_norm_layer", "/base"), ("grad_norm_layer", "/step"), ("ckpt_fraction_layer", "/rest")):
        assert {f"{head}/{name}{tail}" for name in named} == {k for k in row if k.startswith(head) and k.endswith(tail)}
    assert {f"weight_norm_layer/{name}" for name in named} == {k for k in row if k.startswith("weight_norm_layer")}
