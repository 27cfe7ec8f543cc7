"""Several processes: each reads its own share, and the weights are those of one process on the whole batch."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, fit, observed_fit
from support.nets import Everything, Plain, TwoOptimizers, build, float64
from support.passes import FORCED
from support.ranks import Ranks
from torch import Tensor, nn

from lightning_same import ASAM, SAM, SAME, CheckpointFractionMonitor, CheckpointSelect, CustomSAME, Rule, with_sam

RULES = [SAM(0.3), ASAM(0.5), SAME((1, 4), 2.0, 0.3), CustomSAME(2.0, 0.3), CheckpointSelect((1, 4), 0.3)]


WAYS = {
    "default": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "all": {"find_unused_parameters": True, "gradient_as_bucket_view": True, "bucket_cap_mb": 0.0001},
}


class Net(Plain):
    """With BatchNorm in evaluation statistics, and a branch that is never reached if ``unused``."""

    def __init__(self, unused: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 3))
        if unused:
            self.never = nn.Linear(2, 2)
        self.layers[1].running_mean.uniform_(-1, 1)
        self.layers[1].running_var.uniform_(1, 2)

    def on_train_start(self) -> None:
        self.layers[1].eval()


class GAN(TwoOptimizers):
    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        critic, generator = self.optimizers()
        z = x[:, :2] - 1
        self.two_pass_step(lambda: self.critic_loss(x, z), critic)
        self.two_pass_step(lambda: self.generator_loss(z), generator)


def ddp_options(way: str) -> dict[str, Any]:
    if not torch.distributed.is_initialized():
        return {}
    size = torch.distributed.get_world_size()
    return {"devices": size, "strategy": DDPStrategy(process_group_backend="gloo", **WAYS[way])}


def train(rule: Rule, way: str = "default", accumulate: int = 1, kind: Any = Net, batch_size: int = 8) -> Any:
    """Final weights, and the fractions that were seen."""
    with float64():
        kwargs = {"batch_size": batch_size, "unused": "find_unused" in way} if kind is Net else {}
        module = with_sam(build(kind, **kwargs), rule)
        monitor = CheckpointFractionMonitor()
        made = fit(module, accumulate_grad_batches=accumulate, callbacks=[monitor], **ddp_options(way))
    fractions = [value.item() for name, value in made.callback_metrics.items() if name.startswith("ckpt_fraction")]
    return [param.detach() for param in module.parameters()], fractions, made.global_step


def check_against_one(results: list[Any], one: Any) -> None:
    for weights, fractions, steps in results:
        assert differences(weights, results[0][0]) == []
        assert fractions == results[0][1] == pytest.approx(one[1])
        assert len(fractions) == 5
        assert steps == one[2]
        for a, b in zip(weights, one[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_world_size_does_not_matter(ranks: dict[int, Ranks], rule: Rule, size: int) -> None:
    check_against_one(ranks[size].run(train, rule), train(rule))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "default"])
@pytest.mark.parametrize("rule", [SAM(0.3), ASAM(0.5), SAME(1, 2.0, 0.3), CustomSAME(2.0, 0.3)], ids=repr)
def test_options_of_ddp_do_not_matter(ranks: dict[int, Ranks], rule: Rule, way: str) -> None:
    check_against_one(ranks[2].run(train, rule, way), train(rule, way))


@pytest.mark.parametrize("way", ["default", "gradient_as_bucket_view"])
def test_ranks_times_micro_batches_are_one_large_batch(ranks: dict[int, Ranks], way: str) -> None:
    rule = SAME(1, 2.0, 0.3)
    one = train(rule, batch_size=24)
    check_against_one(ranks[2].run(train, rule, way, 3), (one[0], one[1], one[2]))


def test_two_optimizers_by_hand(ranks: dict[int, Ranks]) -> None:
    check_against_one(ranks[2].run(train, SAME(1, 2.0, 0.3), "find_unused_parameters", 1, GAN), train_gan())


def train_gan() -> Any:
    return train(SAME(1, 2.0, 0.3), kind=GAN)


def observe(rule: Rule | None, accumulate: int) -> dict[str, Any]:
    """Batch statistics, dropout and random state differ between the ranks here."""
    rank = torch.distributed.get_rank()
    module = build(Everything)
    if rule is not None:
        module = with_sam(module, rule)
    module.nested["rank"] = rank
    with tempfile.TemporaryDirectory() as folder:
        # The checkpoint file is written by rank zero alone.
        return observed_fit(
            module, Path(folder), accumulate_grad_batches=accumulate, save=rank == 0, **ddp_options("default")
        )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_forced_second_pass_at_rho_zero_is_plain_training(ranks: dict[int, Ranks], accumulate: int) -> None:
    plain = ranks[2].run(observe, None, accumulate)
    forced = ranks[2].run(observe, FORCED, accumulate)
    assert differences(plain, forced) == []
    assert differences(plain[0]["history"], plain[1]["history"]) != []


def drift(rule: Rule) -> list[Tensor]:
    """BatchNorm in training mode: every rank normalises by its own batch."""
    module = with_sam(build(Everything), rule)
    fit(module, max_epochs=8, **ddp_options("default"))
    return [param.detach() for param in module.parameters()]


def test_ranks_stay_bit_identical(ranks: dict[int, Ranks]) -> None:
    results = ranks[2].run(drift, SAME(1, 2.0, 0.3))
    assert differences(results[0], results[1]) == []


class Mixed(Plain):
    """A float64 layer between two of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8).double(), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[3:](self.layers[2](self.layers[:2](x).double()).float())


WINDOWS = {"local": 1, "global": 3}
"""With either ascent g is averaged by this package, not by DDP: after pass two, or of each micro-batch before it."""


def train_mixed(rule: Rule, ascent: str) -> Any:
    module = with_sam(build(Mixed), rule, ascent=ascent, accumulate="micro_batch", check_replay=False)
    fit(module, accumulate_grad_batches=WINDOWS[ascent], **ddp_options("default"))
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("ascent", WINDOWS)
@pytest.mark.parametrize("rule", [SAME((1, 4), 2.0, 0.3), CheckpointSelect((1, 4), 0.3)], ids=repr)
def test_gradients_of_two_dtypes_are_averaged_each_in_its_own(ranks: dict[int, Ranks], rule: Rule, ascent: str) -> None:
    one, two = ranks[2].run(train_mixed, rule, ascent)
    assert differences(one, two) == []
    assert [value.dtype for value in one].count(torch.float64) == 2
    for a, b in zip(one, mixed_loop(rule, ascent), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def mixed_loop(rule: Rule, ascent: str) -> list[Tensor]:
    """Two ranks one after the other, each with an e of its own, or with one of both."""
    module = build(Mixed)
    params, optimizer = list(module.parameters()), module.configure_optimizers()

    def gradient(shares: Any) -> Any:
        loss = sum(module.training_step(share, 0) for share in shares) / len(shares)
        return torch.autograd.grad(loss, params)

    def mean(of: Any) -> list[Tensor]:
        return [torch.stack(each).mean(dim=0) for each in zip(*of, strict=True)]

    for _ in range(2):
        batches = list(module.train_dataloader())
        for start in range(0, len(batches), WINDOWS[ascent]):
            base, perturbed = [], []
            for x, y in batches[start : start + WINDOWS[ascent]]:
                shares = [[x[rank::2], y[rank::2]] for rank in range(2)]
                for group in [[share] for share in shares] if ascent == "local" else [shares]:
                    base.append(gradient(group))
                    with rule.perturbed(params, base[-1]):
                        perturbed.append(gradient(group))
            for param, grad in zip(params, rule.combine(mean(base), mean(perturbed)), strict=True):
                param.grad = grad
            optimizer.step()
    return [param.detach() for param in params]
