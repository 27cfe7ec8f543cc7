"""How many gradients are sent between processes, counted in bytes, and when."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import fit
from support.nets import Plain, build
from support.ranks import Ranks
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lightning_same import SAM, SAME, Rule, with_sam
from lightning_same.rules.timing import RandomSteps
from lightning_same.trainer import distributed as trainer_distributed


def wire(rule: Rule, micro_batches: int, options: dict[str, Any]) -> tuple[float, list[str]]:
    """How many gradients this process sends in one step, counted in bytes, and what it does in which order."""
    events: list[str] = []
    reduced = 0

    def counted_hook(state: Any, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal reduced
        reduced += bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    def counted_all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal reduced
        reduced += tensor.nbytes
        events.append("reduce")
        work = distributed.all_reduce(tensor, *args, **kwargs)
        wait = work.wait

        class Work:
            def wait(self) -> None:
                events.append("wait")
                wait()

        return Work()

    class Watched(Plain):
        def on_train_start(self) -> None:
            self.trainer.strategy.model.register_comm_hook(None, counted_hook)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            events.append(f"forward {self.sam_pass}")
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            events.append("step")

    module = with_sam(build(Watched), rule, **options, check_replay=False)
    strategy = DDPStrategy(process_group_backend="gloo")
    with pytest.MonkeyPatch.context() as patch:
        ours = SimpleNamespace(all_reduce=counted_all_reduce, get_world_size=distributed.get_world_size)
        patch.setattr(trainer_distributed, "distributed", ours)
        fit(module, max_steps=1, accumulate_grad_batches=micro_batches, devices=2, strategy=strategy)
    return reduced / sum(param.nbytes for param in module.parameters()), events


@pytest.mark.parametrize(
    ("rule", "micro_batches", "options", "gradients"),
    [
        (None, 1, {}, 1),
        (SAM(0.3), 1, {}, 2),
        (SAME(1, 2.0, 0.3), 1, {}, 2),
        (SAM(0.3), 1, {"ascent": "local"}, 1),
        (SAME(1, 2.0, 0.3), 1, {"ascent": "local"}, 2),
        (None, 3, {}, 1),
        (SAM(0.3), 3, {}, 2),
        (SAM(0.3), 3, {"ascent": "local"}, 1),
        (SAM(0.3), 3, {"ascent": "local", "accumulate": "micro_batch"}, 1),
        (SAME(1, 2.0, 0.3), 3, {"ascent": "local", "accumulate": "micro_batch"}, 2),
        (SAM(0.3), 3, {"accumulate": "micro_batch"}, 4),
        (SAM(0.3, timing=RandomSteps(0.0)), 1, {"ascent": "local"}, 1),
    ],
    ids=repr,
)
def test_gradients_on_the_wire(
    ranks: dict[int, Ranks], rule: Rule | None, micro_batches: int, options: dict[str, Any], gradients: int
) -> None:
    for sent, _ in ranks[2].run(wire, rule, micro_batches, options):
        assert sent == gradients


def test_the_reduction_of_g_overlaps_pass_two(ranks: dict[int, Ranks]) -> None:
    for _, events in ranks[2].run(wire, SAME(1, 2.0, 0.3), 1, {"ascent": "local"}):
        assert events == ["forward 1", "reduce", "forward 2", "wait", "step"]
