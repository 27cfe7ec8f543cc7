"""FSDP2 through Lightning's ModelParallelStrategy: every shard is on one process, every norm is over them all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from support.fits import differences, fit, trainer
from support.named_rules import RULES
from support.nets import build, seed_all
from support.ranks import Ranks
from support.sharded import Sharded, needs_fsdp2, strategy, whole
from torch import Tensor

from lightning_same import SAM, SAME, LookSAM, Rule, VaSSO, checkpoint_fractions, with_sam
from lightning_same.gradients.pair import TwoGradients
from lightning_same.rules.timing import RandomSteps

pytestmark = needs_fsdp2


class Fractions(Callback):
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_two_pass_gradients(self, _: Any, module: Any, gradients: TwoGradients) -> None:
        found = checkpoint_fractions(gradients.grads, gradients.perturbed_grads)
        self.seen.append([value.item() for value in found])


def train(rule: Rule, micro_batches: int = 1, **options: Any) -> Any:
    seen = Fractions()
    module = with_sam(build(Sharded, samples=32), rule, **options)
    made = fit(
        module,
        accumulate_grad_batches=micro_batches,
        callbacks=[seen],
        **(strategy() if torch.distributed.is_initialized() else {}),
    )
    return whole(module), seen.seen, made.global_step


def train_each(micro_batches: int) -> dict[str, Any]:
    return {name: train(rule, micro_batches) for name, rule in RULES.items()}


@pytest.fixture(scope="module")
def sharded(ranks: dict[int, Ranks]) -> dict[int, list[dict[str, Any]]]:
    """What each rank of a group has trained, by the size of the group."""
    return {size: ranks[size].run(train_each, 1) for size in (2, 4)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", RULES)
def test_processes_are_one(sharded: dict[int, list[dict[str, Any]]], name: str, size: int) -> None:
    one = train(RULES[name])
    for weights, fractions, steps in (each[name] for each in sharded[size]):
        assert steps == one[2]
        # An element in ten thousand may be on the other side of a border for its last bit.
        torch.testing.assert_close(torch.tensor(fractions), torch.tensor(one[1]), rtol=0, atol=0.02)
        check_close(weights, one[0])


def check_close(weights: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def train_otherwise(rule: Rule, micro_batches: int, options: dict[str, Any]) -> Any:
    return train(rule, micro_batches, **options)


@pytest.mark.parametrize("options", [{}, {"accumulate": "micro_batch"}, {"nonfinite": "skip"}], ids=repr)
def test_accumulation(ranks: dict[int, Ranks], options: dict[str, Any]) -> None:
    rule = SAME((1, 4), 2.0, 0.3)
    one = train(rule, 3) if "accumulate" not in options else None
    results = ranks[2].run(train_otherwise, rule, 3, options)
    assert differences(results[0], results[1]) == []
    if one is not None:
        check_close(results[0][0], one[0])


def train_and_resume(rule: Rule, folder: str) -> tuple[list[Tensor], list[Tensor]]:
    """Four epochs, and the last two of them once more from a checkpoint file."""
    found = []
    for resume in (False, True):
        module = with_sam(build(Sharded), rule)
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        options = strategy()
        made = trainer(max_epochs=4, callbacks=[keep], enable_checkpointing=True, **options)
        seed_all(1)
        made.fit(module, ckpt_path=f"{folder}/epoch=1.ckpt" if resume else None)
        found.append(whole(module))
    return found[0], found[1]


@pytest.mark.parametrize("rule", [VaSSO(0.3), LookSAM(0.3, k=5), SAME(1, 2.0, 0.3)], ids=repr)
def test_a_rule_remembers_over_a_checkpoint_file(ranks: dict[int, Ranks], rule: Rule, tmp_path: Path) -> None:
    for straight, resumed in ranks[2].run(train_and_resume, rule, str(tmp_path)):
        assert differences(straight, resumed) == []


class Bad(Sharded):
    """Not finite on one rank, at one step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_rank == 1 and self.trainer.global_step == 3 else loss


def train_through_nan() -> Any:
    module = with_sam(build(Bad), SAM(0.3), nonfinite="skip")
    made = fit(module, **strategy())
    return made.callback_metrics["sam/skipped_steps"].item(), whole(module)


def test_a_bad_step_is_skipped_by_all(ranks: dict[int, Ranks]) -> None:
    for skipped, weights in ranks[2].run(train_through_nan):
        assert skipped == 1
        assert all(weight.isfinite().all() for weight in weights)


class Spike(torch.autograd.Function):
    """0, with an infinite derivative by the first of its inputs."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.shape = out.shape
        return out.sum() * 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        spike = torch.zeros(ctx.shape)
        spike[:, 0] = torch.inf
        return spike


class BadRow(Sharded):
    """At one step the gradient of the first row is infinite, which is in the shard of the first rank alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + Spike.apply(self(batch[0])) if self.trainer.global_step == 3 else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layers[2].parameters(), lr=0.1, weight_decay=0.1)


def train_through_inf() -> Any:
    module = with_sam(build(BadRow), SAM(0.3, timing=RandomSteps(0.0)), nonfinite="skip")
    made = fit(module, **strategy())
    return made.callback_metrics["sam/skipped_steps"].item(), whole(module)


def test_all_processes_agree_on_what_one_of_them_sees(ranks: dict[int, Ranks]) -> None:
    for skipped, weights in ranks[2].run(train_through_inf):
        assert skipped == 1
        assert all(weight.isfinite().all() for weight in weights)


def train_locally() -> None:
    with pytest.raises(RuntimeError, match="ModelParallelStrategy leaves no process a gradient of its own"):
        train(SAM(0.3), ascent="local")


def test_there_is_no_local_gradient_to_climb_by(ranks: dict[int, Ranks]) -> None:
    ranks[2].run(train_locally)
