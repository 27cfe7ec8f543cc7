"""DDP over NCCL: every option, one process against several, and ranks that stay the same."""

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences
from support.ranks import Ranks
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.utils.data import DataLoader, DistributedSampler

from gpu.machine import BACKEND, REHEARSAL, fit
from gpu.nets import Convolutional, Noted, made
from lightning_same import SAM, SAME, CheckpointFractionMonitor, GradientNormMonitor, LookSAM, Rule

pytestmark = [pytest.mark.gpu, pytest.mark.multi_gpu]


class Shared(Noted):
    """Every process reads its part of each batch of 8; in float64, for one process to be compared with several."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0].double()), batch[1])
        self.seen.values.append(loss.detach().clone())
        return loss

    def train_dataloader(self) -> DataLoader:
        return shared(super().train_dataloader())


class Unused(Shared):
    """With a layer that no forward reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2).double()


class Normed(Convolutional):
    """For SyncBatchNorm."""

    def train_dataloader(self) -> DataLoader:
        return shared(super().train_dataloader())


def shared(loader: DataLoader) -> DataLoader:
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    sampler = DistributedSampler(loader.dataset, shuffle=False) if size > 1 else None
    return DataLoader(loader.dataset, 8 // size, sampler=sampler)


def ddp(**options: Any) -> dict[str, Any]:
    if not distributed.is_initialized():
        return {}
    return {"devices": distributed.get_world_size(), "strategy": DDPStrategy(process_group_backend=BACKEND, **options)}


def train(rule: Rule, options: dict[str, Any], passes: dict[str, Any], **fitted: Any) -> list[Tensor]:
    module = made(Unused if options.get("find_unused_parameters") else Shared, rule, **passes)
    fit(module, **ddp(**options), **fitted)
    return [param.detach().cpu().clone() for param in module.parameters()]


def train_on_ranks(rule: Rule, options: dict[str, Any], passes: dict[str, Any], fitted: dict[str, Any]) -> list[Tensor]:
    return train(rule, options, passes, **fitted)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "bucket views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "comm hook": {"ddp_comm_hook": allreduce_hook},
    "small buckets": {"bucket_cap_mb": 0.001},
}
RULES = [SAM(0.3), SAME((1, 4), 2.0, 0.3), LookSAM(0.3, k=2)]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_processes_are_one(gpus: Ranks, rule: Rule, options: str, accumulate: int) -> None:
    if options == "static graph" and accumulate > 1:
        pytest.skip("refused by name")
    fitted = {"accumulate_grad_batches": accumulate}
    one = train(rule, OPTIONS[options], {}, **fitted)
    found = gpus.run(train_on_ranks, rule, OPTIONS[options], {}, fitted)
    for weights in found:
        assert differences(weights, found[0]) == []
        for ours, expected in zip(weights, one, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


WAYS: dict[str, dict[str, Any]] = {
    "global": {},
    "local": {"ascent": "local"},
    "micro_batch": {"accumulate": "micro_batch"},
    "skip": {"nonfinite": "skip"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES[:2], ids=repr)
def test_ranks_are_the_same_after_a_hundred_steps(gpus: Ranks, rule: Rule, way: str) -> None:
    fitted = {"max_epochs": 17, "accumulate_grad_batches": 2 if way == "micro_batch" else 1}
    found = gpus.run(train_on_ranks, rule, {"gradient_as_bucket_view": True}, WAYS[way], fitted)
    for weights in found[1:]:
        assert differences(weights, found[0]) == []


def train_mixed(rule: Rule, precision: str, hook: str) -> list[Tensor]:
    monitors = [CheckpointFractionMonitor(every_n_steps=2), GradientNormMonitor(every_n_steps=2)]
    module = made(Normed, rule)
    options = ddp(ddp_comm_hook=fp16_compress_hook) if hook else ddp()
    fit(module, callbacks=monitors, precision=precision, sync_batchnorm=not REHEARSAL, **options)
    return [value.cpu().clone() for value in module.state_dict().values() if value.is_floating_point()]


@pytest.mark.parametrize("hook", ["", pytest.param("fp16_compress_hook", marks=pytest.mark.cuda_only)])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_with_synchronized_batch_norm(gpus: Ranks, precision: str, hook: str) -> None:
    found = gpus.run(train_mixed, SAME((1, 4), 2.0, 0.3), precision, hook)
    for weights in found:
        assert all(weight.isfinite().all() for weight in weights)
    if not REHEARSAL:
        assert differences(found[0], found[1]) == []
