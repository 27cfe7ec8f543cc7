"""FSDP2 over tensor parallelism: 2 x 2 processes are one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from support.fits import differences, trainer
from support.named_rules import RULES
from support.nets import build, seed_all
from support.ranks import Ranks
from support.sharded import TwoDimensional, needs_fsdp2, whole
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_same import Rule, VaSSO, with_sam
from lightning_same.gradients.checkpoints import checkpoint_counts
from lightning_same.gradients.tensors import dot_and_square, global_norm, norm_of

pytestmark = needs_fsdp2


def strategy() -> dict[str, Any]:
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2, process_group_backend="gloo")
    return {"devices": 4, "strategy": sharded}


def train(rule: Rule, folder: str | None = None, resume: bool = False) -> list[Tensor]:
    """Two epochs, of which a resumed run takes the second; a checkpoint file after each, if there is a folder."""
    module = with_sam(build(TwoDimensional, samples=32), rule)
    options: dict[str, Any] = strategy() if torch.distributed.is_initialized() else {}
    if folder is not None:
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        options.update(callbacks=[keep], enable_checkpointing=True)
    made = trainer(max_epochs=2, **options)
    seed_all(1)
    made.fit(module, ckpt_path=f"{folder}/epoch=0.ckpt" if resume else None)
    return whole(module)


NAMES = ["SAM", "ASAM", "SAME", "GSAM", "FriendlySAM", "VaSSO", "LookSAM", "AESAM", "MomentumSAM"]


def train_each() -> dict[str, list[Tensor]]:
    return {name: train(RULES[name]) for name in NAMES}


@pytest.fixture(scope="module")
def two_by_two(ranks: dict[int, Ranks]) -> list[dict[str, list[Tensor]]]:
    """What each rank has trained."""
    return ranks[4].run(train_each)


@pytest.mark.parametrize("name", NAMES)
def test_two_by_two_processes_are_one(two_by_two: list[dict[str, list[Tensor]]], name: str) -> None:
    one = train(RULES[name])
    for weights in two_by_two:
        for ours, expected in zip(weights[name], one, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def train_and_resume(folder: str) -> tuple[list[Tensor], list[Tensor]]:
    rule = VaSSO(0.3)
    return train(rule, folder), train(rule, folder, resume=True)


def test_a_rule_remembers_over_a_checkpoint_file(ranks: dict[int, Ranks], tmp_path: Path) -> None:
    for straight, resumed in ranks[4].run(train_and_resume, str(tmp_path)):
        assert differences(straight, resumed) == []


def measure() -> tuple[bool, list[Any], list[Any]]:
    """By the shards, and by the whole tensors: a norm, a dot product, counts, a norm of a formula."""
    module = build(TwoDimensional)
    made = trainer(max_epochs=1, **strategy())
    made.fit(module)
    first = [param.detach() for param in module.parameters()]
    generator = torch.Generator().manual_seed(0)
    second = [param * 3 * torch.rand((), generator=generator).item() for param in first]
    odd = any(not (place.is_shard() or place.is_replicate()) for param in first for place in param.placements)
    results = []
    for a, b in ((first, second), ([x.full_tensor() for x in first], [x.full_tensor() for x in second])):
        assert isinstance(a[0], DTensor) == (a is first)
        measured = [global_norm(a), *dot_and_square(a, b), norm_of(torch.mul, a, b), *checkpoint_counts(a, b)]
        results.append([value.item() for value in measured])
    return odd, *results


def test_what_is_summed_over_shards_is_what_the_whole_tensors_give(ranks: dict[int, Ranks]) -> None:
    for odd, by_shards, by_whole in ranks[4].run(measure):
        assert odd, "no placement is unknown to `is_shard`, so this proves nothing"
        assert by_shards == pytest.approx(by_whole, rel=1e-5)
