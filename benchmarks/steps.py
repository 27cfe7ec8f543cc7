"""Step time of the rules: against the bare limit, against plain training in Lightning, and against peers there.

``python benchmarks/steps.py`` writes ``benchmarks/results/steps.json`` and the table in ``docs/benchmarks.md``. All
kinds of a comparison take turns in one process; a figure is the median over the rounds of the ratio within a round. The
time is that of the process on the CPU, which other processes change least; wall time stands beside it.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from figures import RESULTS, Took, interleaved, now, ratios, since, system, threads_of, timed, write
from torch.nn.functional import cross_entropy
from workloads import MLP, RESNET_16, RESNET_64, RHO, TRANSFORMER, ByHand, ByPytorchOptimizer, ByWrapper, Net, Workload
from workloads import sgd as sgd_of

from lightning_same import (
    GSAM,
    SAM,
    SAME,
    CheckpointFractionMonitor,
    CustomSAME,
    Rule,
    checkpoint_fractions,
    with_sam,
)
from lightning_same.rules.timing import Every

RULES: dict[str, Rule] = {
    "SAM": SAM(RHO),
    "SAME": SAME(1, 2.0, RHO),
    "CustomSAME": CustomSAME(2.0, RHO),
    "GSAM": GSAM(RHO),
}
BARE_GOALS = {
    (RESNET_64.name, "SAM"): 1.02,
    (RESNET_16.name, "SAM"): 1.04,
    (RESNET_64.name, "SAME, fractions"): 1.03,
    (RESNET_16.name, "SAME, fractions"): 1.06,
}
LIGHTNING_GOALS = {"SAM": 1.6, "SAME": 1.8}
PLAIN_MEAN = "plain, mean step"


class Rounds(NamedTuple):
    """How often a workload is measured: rounds and steps in a plain loop, rounds and timed steps in Lightning."""

    workload: Workload
    bare: int
    bare_steps: int
    lightning: int
    lightning_steps: int


FULL = [
    Rounds(MLP, 25, 30, 15, 100),
    Rounds(TRANSFORMER, 25, 4, 20, 10),
    Rounds(RESNET_16, 12, 1, 5, 3),
    Rounds(RESNET_64, 8, 1, 3, 2),
]
QUICK = [Rounds(MLP, 5, 20, 4, 20), Rounds(TRANSFORMER, 5, 2, 3, 5), Rounds(RESNET_16, 3, 1, 2, 1)]


def bare_step(workload: Workload, rule: Rule | None, fractions: bool = False) -> Callable[[], None]:
    """One training step in a plain loop; without a rule the bare limit: two passes and the optimizer's step."""
    network, batch = workload.network(), workload.batch()
    params, optimizer = list(network.parameters()), sgd_of(network)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(cross_entropy(network(batch[0]), batch[1]), params))

    def step() -> None:
        grads = gradients()
        if rule is None:
            perturbed_grads = gradients()
        else:
            with rule.perturbed(params, grads):
                perturbed_grads = gradients()
            if fractions:
                checkpoint_fractions(grads, perturbed_grads)
            rule.combine_(grads, perturbed_grads)
        for param, grad in zip(params, perturbed_grads, strict=True):
            param.grad = grad
        optimizer.step()

    step()
    return step


class Stopwatch(pl.Callback):
    """Times whole training steps with all that Lightning does between them, from one's start to the next one's."""

    def __init__(self, warm_up: int) -> None:
        self.took: list[Took] = []
        self._warm_up = warm_up
        self._began: Took | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._began is not None and batch_idx > self._warm_up:
            self.took.append(since(self._began))
        self._began = now()


def fit(module: pl.LightningModule, workload: Workload, steps: int, *callbacks: pl.Callback) -> list[Took]:
    """The steps of a short fit, without the first few."""
    warm_up = min(5, max(1, steps // 4))
    watch = Stopwatch(warm_up)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[*callbacks, watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, workload.loader(warm_up + steps + 1))
    return watch.took


def bare(at: Rounds) -> list[dict[str, Took]]:
    """The rules in a plain loop."""
    steps = {"limit": bare_step(at.workload, None)}
    steps |= {name: bare_step(at.workload, rule) for name, rule in RULES.items()}
    steps["SAME, fractions"] = bare_step(at.workload, RULES["SAME"], fractions=True)

    def several(step: Callable[[], None]) -> Sequence[Took]:
        return [timed(step) for _ in range(at.bare_steps)]

    return interleaved({name: partial(several, step) for name, step in steps.items()}, at.bare)


def inside_lightning(at: Rounds) -> list[dict[str, Took]]:
    """The rules and their peers in Lightning."""
    workload = at.workload
    modules: dict[str, pl.LightningModule] = {"plain": Net(workload), "wrapper": ByWrapper(workload)}
    modules["pytorch_optimizer"] = ByPytorchOptimizer(workload)
    every = {f"SAM every {k}": SAM(RHO, timing=Every(k)) for k in ((2, 5, 10) if workload is MLP else (5,))}
    rules = RULES | every
    if workload in (RESNET_16, RESNET_64):  # Where a step takes a second, the kinds that a goal speaks of.
        rules = {name: rules[name] for name in ("SAM", "SAME")}
    else:
        modules["by hand"] = ByHand(workload)
    modules |= {name: with_sam(Net(workload), rule) for name, rule in rules.items()}
    runs: dict[str, Callable[[], Sequence[Took]]] = {
        name: partial(fit, module, workload, at.lightning_steps) for name, module in modules.items()
    }
    # Where some steps are longer than others, means of whole periods are compared, and not the medians of single steps.
    means = {name: name for name in every if name in runs}
    if means:
        means[PLAIN_MEAN] = "plain"
    for name, kind in means.items():
        runs[name] = lambda kind=kind: mean_of(fit(modules[kind], workload, at.lightning_steps))
    measured = with_sam(Net(workload), RULES["SAME"])
    runs["SAME, fractions"] = lambda: fit(
        measured, workload, at.lightning_steps, CheckpointFractionMonitor(every_n_steps=1)
    )
    return interleaved(runs, at.lightning)


def mean_of(took: Sequence[Took]) -> Sequence[Took]:
    """The mean step of whole periods of 2, 5 and 10."""
    whole = took[: len(took) // 10 * 10] or took
    return [Took(*(sum(each) / len(whole) for each in zip(*whole, strict=True)))]


def row(workload: str, of: str, to: str, found: dict[str, float], goal: float | None) -> dict[str, Any]:
    """One line of the table."""
    met = None if goal is None else found["ratio"] <= goal
    return {"workload": workload, "of": of, "to": to, **found, "goal": goal, "met": met}


def rows_of(at: Rounds) -> list[dict[str, Any]]:
    """All lines of a workload."""
    name = at.workload.name
    loop = bare(at)
    rows = [
        row(name, f"{kind}, plain loop", "bare limit", ratios(loop, kind, "limit"), BARE_GOALS.get((name, kind)))
        for kind in loop[0]
        if kind != "limit"
    ]
    inside = inside_lightning(at)
    peers = {"wrapper", "pytorch_optimizer", "by hand"}
    for kind in inside[0]:
        if kind not in ("plain", PLAIN_MEAN):
            goal = LIGHTNING_GOALS.get(kind) if at.workload is MLP else None
            goal = 1.25 if kind == "SAM every 5" else goal
            plain = PLAIN_MEAN if kind.startswith("SAM every") else "plain"
            rows.append(row(name, f"{kind}, Lightning", "plain, Lightning", ratios(inside, kind, plain), goal))
    for peer in inside[0]:
        if peer in peers:
            goal = None if peer == "by hand" else 1.0
            rows.append(row(name, "SAM, Lightning", f"{peer}, Lightning", ratios(inside, "SAM", peer), goal))
    return rows


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without batch 64; nothing is written")
    parser.add_argument("--only", choices=[at.workload.name for at in FULL], help="a model; the others' figures stay")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    threads = threads_of(options)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    known = [] if options.only is None else json.loads((RESULTS / "steps.json").read_text())["rows"]
    for at in QUICK if options.quick else FULL:
        chosen = options.only in (None, at.workload.name)
        found = rows_of(at) if chosen else [each for each in known if each["workload"] == at.workload.name]
        for each in found:
            names = f"{each['workload']:<26}{each['of']:<34}{each['to']:<30}"
            print(f"{names}{each['ratio']:.3f}  wall {each['wall_ratio']:.3f}", flush=True)
        rows += found
    if options.quick:
        return
    table = [
        [
            each["workload"],
            each["of"],
            each["to"],
            f"{each['ratio']:.3f} ({each['low']:.3f} to {each['high']:.3f})",
            f"{each['wall_ratio']:.3f}",
            "" if each["goal"] is None else f"{each['goal']:.2f} {'met' if each['met'] else '**missed**'}",
        ]
        for each in rows
    ]
    head = ["model", "step of", "over step of", "ratio of CPU time (quartiles)", "wall", "goal"]
    write("steps", {**system(threads), "rows": rows}, table, head)


if __name__ == "__main__":
    main()
