"""Clean and noisy samples of a batch, measured apart."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import fit
from support.monitored import GROUPS, MONITORS, STEP, class_zero, flat, measured, rows_of
from support.nets import Everything, Plain, build, float64
from support.ranks import Ranks
from support.sharded import Sharded, strategy
from torch import Tensor, nn

from lightning_same import SAM, CheckpointFractionMonitor, Every, GradientNormMonitor, with_sam
from lightning_same.callbacks.noisy_samples import clean_and_noisy


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


@dataclass
class Fields:
    x: Tensor
    y: Tensor
    note: str = "kept"


@pytest.mark.parametrize("kind", [lambda x, y: Fields(x, y), lambda x, y: UserDict(x=x, y=Fields(x, y), note="kept")])
def test_the_samples_of_dataclasses_and_mappings_are_cut_too(kind: Any) -> None:
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    batch = kind(x, y)
    parts = clean_and_noisy(pl.Trainer(logger=False, accelerator="cpu"), build(Plain), batch, lambda _: y == 0)
    for part, mask in ((parts["clean"].batch, y != 0), (parts["noisy"].batch, y == 0)):
        assert type(part) is type(batch)
        found = (part["x"], part["y"].y, part["note"]) if isinstance(part, UserDict) else (part.x, part.y, part.note)
        assert torch.equal(found[0], x[mask])
        assert torch.equal(found[1], y[mask])
        assert found[2] == "kept"
    assert len(batch["y"].y if isinstance(batch, UserDict) else batch.y) == 8


def test_beside_a_rule_the_values_of_the_batch_are_those_of_its_passes() -> None:
    """Without a second pass there are none, but those of the parts."""
    module = with_sam(build(Plain), SAM(0.3, timing=Every(2)))
    rows = rows_of(module, CheckpointFractionMonitor(noisy_mask=class_zero), max_steps=2)
    assert ["ckpt_fraction/ckpt1" in row for _, row in rows] == [True, False]
    assert all("ckpt_fraction_noisy/ckpt1" in row for _, row in rows)


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


def parts_over_shards() -> None:
    monitor = CheckpointFractionMonitor(noisy_mask=lambda batch: batch[1] == 0)
    with pytest.raises(RuntimeError, match="not every process has as many clean and noisy samples in every batch"):
        fit(build(Sharded), callbacks=[monitor], **strategy())


def test_parts_of_batches_are_refused_over_shards(ranks: dict[int, Ranks]) -> None:
    ranks[2].run(parts_over_shards)


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


def test_a_lone_sample_of_a_kind_counts_where_no_layer_mixes_samples() -> None:
    def first(batch: Any) -> Tensor:
        return torch.arange(len(batch[0])) == 0

    ((_, row),) = rows_of(build(Plain), GradientNormMonitor(noisy_mask=first), max_steps=1)
    module = build(Plain)
    x, y = next(iter(module.train_dataloader()))
    for part, rows in (("noisy", slice(0, 1)), ("clean", slice(1, None))):
        g = torch.autograd.grad(module.training_step([x[rows], y[rows]], 0), list(module.parameters()))
        assert row[f"grad_norm_{part}/base"] == pytest.approx(np.linalg.norm(flat(g)), rel=1e-5)
