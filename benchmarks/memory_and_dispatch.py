"""What a step allocates, dispatches, waits for and sends, counted and not timed; and what its replay takes of its time.

``python benchmarks/memory_and_dispatch.py`` writes ``benchmarks/results/memory_and_dispatch.json`` and the table in
``docs/benchmarks.md``.

- Memory: torch's profiler reports each allocation and release of the CPU allocator. The peak is that of their sum over
  a step after the first two, with what a rule keeps from step to step, beyond the peak of plain training.
- Operations: a `TorchDispatchMode` counts what a step dispatches beyond its two passes and the optimizer's step. Views
  stand apart: they compute nothing and launch no kernel.
- Waits: the same mode counts the operations by which the host would wait for an accelerator.
"""

import argparse
import gc
import logging
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from figures import system, threads_of, write
from steps import fit
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from workloads import MLP, RESNET_16, TRANSFORMER, Net, Workload

from lightning_same import GSAM, SAM, SAME, CheckpointFractionMonitor, CustomSAME, Rule, with_sam
from lightning_same.replay import tensor_copies
from lightning_same.replay.snapshot import Snapshot
from lightning_same.rules.state import Memory
from lightning_same.two_pass import routes

CONVOLUTIONS = Workload(
    "convolutions, batch 8",
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Flatten(), nn.Linear(512, 10)
    ),
    8,
    lambda samples: torch.randn(samples, 3, 32, 32),
)

WAITS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "bincount"}


class Counted(TorchDispatchMode):
    """Counts what is dispatched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        self.views += func.is_view
        return func(*args, **(kwargs or {}))


def dispatched(function: Callable[[], Any]) -> tuple[int, int]:
    """How many operations a call dispatches: those that touch elements, and views of them."""
    with Counted() as counted:
        function()
    return counted.names.total() - counted.views, counted.views


def step_of(rule: Rule | None, params: list[Tensor], memory: Memory, passes: int = 2) -> Callable[[], None]:
    """A step in a plain loop; without a rule, so many passes and the optimizer's step."""
    optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9)

    def gradients() -> list[Tensor]:
        loss = torch.stack(torch._foreach_norm(params)).square().sum()
        return list(torch.autograd.grad(loss, params))

    def step() -> None:
        grads = gradients()
        s = grads
        if rule is None:
            for _ in range(passes - 1):
                s = gradients()
        else:
            needs = rule.combination.needs_grads
            with rule.perturbed(params, grads, memory=memory):
                if not needs:
                    grads.clear()
                s = gradients()
            if needs:
                rule.combine_(grads, s, memory=memory)
        for param, grad in zip(params, s, strict=True):
            param.grad = grad
        del grads, s
        optimizer.step()
        optimizer.zero_grad()

    return step


def tensors(count: int, elements: int) -> list[Tensor]:
    """Parameters of a number and a size in all."""
    return [torch.randn(elements // count, requires_grad=True) for _ in range(count)]


def beyond_the_passes(rule: Rule, count: int) -> tuple[int, int]:
    """What a rule dispatches in a step in the steady state beyond the two passes and the optimizer's step."""
    found = []
    for each in (rule, None):
        params = tensors(count, 100_000)
        step = step_of(each, params, Memory(params))
        step()
        step()
        found.append(dispatched(step))
    (touching, views), (touching_in_passes, views_in_passes) = found
    return touching - touching_in_passes, views - views_in_passes


def peak(step: Callable[[], None]) -> int:
    """The most bytes that a step has allocated at once beyond those that were alive before the first."""
    step()
    step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    alive = highest = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            highest = max(highest, alive)
    return highest


def extra_copies(rule: Rule) -> float:
    """Peak memory of a rule's step beyond that of plain training, in copies of the parameters."""
    peaks = []
    for each in (rule, None):
        params = tensors(50, 11_200_000)
        memory = Memory(params)
        step = step_of(each, params, memory, passes=1)
        peaks.append(peak(step) + sum(room.nbytes for room in memory._scratch.values()))
    return (peaks[0] - peaks[1]) / sum(param.nbytes for param in params)


def replay_share(workload: Workload, steps: int) -> float:
    """The part of a step that pass two's faithfulness takes: copies of the batch, snapshots, and putting them back."""
    spent: list[float] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args)
            finally:
                spent.append(time.process_time() - start)

        return call

    with (
        patch.object(Snapshot, "__init__", watched(Snapshot.__init__)),
        patch.object(Snapshot, "restore", watched(Snapshot.restore)),
        patch.object(routes, "copy_of", watched(routes.copy_of)),
    ):
        took = fit(with_sam(Net(workload), SAM()), workload, steps)
    return 5 * statistics.mean(spent) / statistics.median(each.cpu for each in took)  # Two, two and one in a step.


class Watch(pl.Callback):
    """Counts what whole steps of a fit dispatch, from the third on."""

    def __init__(self) -> None:
        self.counted = Counted()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.counted.__enter__()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.counted.__exit__(None, None, None)


def waits(rule: Rule | None) -> int:
    """Waits in steps of a fit with BatchNorm, dropout and fractions at every step; the CPU does as accelerators do."""
    watch, monitor = Watch(), CheckpointFractionMonitor(every_n_steps=1)
    with patch.object(tensor_copies, "_compares", lambda tensor: False):
        fit(with_sam(Net(CONVOLUTIONS), rule), CONVOLUTIONS, 6, *([] if rule is None else [monitor]), watch)
    return sum(number for name, number in watch.counted.names.items() if name in WAITS)


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="nothing is timed and nothing is written")
    options = parser.parse_args()
    threads = threads_of(options)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rules: dict[str, Rule] = {"SAM": SAM(), "SAME": SAME(1, 2.0), "CustomSAME": CustomSAME(), "GSAM": GSAM()}
    rows: list[dict[str, Any]] = []

    def row(figure: str, found: float | str, goal: str = "", met: bool | None = None) -> None:
        rows.append({"figure": figure, "value": found, "goal": goal, "met": met})
        print(rows[-1], flush=True)

    for name, rule in rules.items():
        goal = {"SAM": 1.0, "SAME": 2.0}.get(name)
        copies = extra_copies(rule)
        row(
            f"{name}: peak memory beyond plain training, parameter copies",
            round(copies, 3),
            "" if goal is None else f"{goal}",
            None if goal is None else copies <= goal + 0.05,
        )
    for name, rule in rules.items():
        few, many = (beyond_the_passes(rule, count) for count in (10, 2000))
        for kind, a, b in zip(("operations on elements", "views"), few, many, strict=True):
            row(f"{name}: {kind} beyond the passes, 10 and 2,000 tensors", f"{a}, {b}", "the same", a == b)
    for name, rule in rules.items():
        found = waits(rule) - waits(None)
        row(f"{name}, fractions: host syncs in Lightning beyond plain training's", found, "0", found == 0)
    if options.quick:
        return
    for workload, steps in ((RESNET_16, 6), (TRANSFORMER, 50), (MLP, 500)):
        share = replay_share(workload, steps)
        goal, met = ("0.01", share <= 0.01) if workload is RESNET_16 else ("", None)
        row(f"replay: share of a SAM step, {workload.name}", round(share, 5), goal, met)
    table = [
        [
            each["figure"],
            str(each["value"]),
            f"{each['goal']} {'' if each['met'] is None else ('met' if each['met'] else '**missed**')}".strip(),
        ]
        for each in rows
    ]
    write("memory_and_dispatch", {**system(threads), "rows": rows}, table, ["figure", "found", "goal"])


if __name__ == "__main__":
    main()
