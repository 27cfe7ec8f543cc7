"""What the monitors of the two gradients take of a step, at every step.

``python benchmarks/monitors.py`` writes ``benchmarks/results/monitors.json`` and the table in ``docs/benchmarks.md``.
On a CPU nothing is left under way when a hook returns, so the time in a monitor's hooks is what it costs.
"""

import argparse
import logging
import statistics
import warnings
from typing import Any

from figures import now, since, system, threads_of, write
from steps import fit
from workloads import RESNET_16, RESNET_64, RHO, Net

from lightning_same import SAME, CheckpointFractionMonitor, GradientNormMonitor, with_sam

HOOKS = ("on_train_batch_start", "on_two_pass_gradients", "on_before_optimizer_step", "on_train_batch_end")
GOAL = 0.02


def timed_kind(kind: type[Any]) -> type[Any]:
    """A monitor's class whose instances gather in ``took`` how long each call of a hook takes."""

    def wrapped(name: str) -> Any:
        def hook(self: Any, *args: Any) -> None:
            start = now()
            getattr(kind, name)(self, *args)
            self.took.append(since(start))

        return hook

    return type(kind.__name__, (kind,), {"took": [], **{name: wrapped(name) for name in HOOKS}})


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, at batch 64; four times as many at 16")
    options = parser.parse_args()
    threads = threads_of(options)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    for workload, steps in ((RESNET_16, 4 * options.steps), (RESNET_64, options.steps)):
        kinds = [timed_kind(CheckpointFractionMonitor), timed_kind(GradientNormMonitor)]
        monitors = [kind(every_n_steps=1) for kind in kinds]
        module = with_sam(Net(workload), SAME(1, 2.0, RHO))
        took = fit(module, workload, steps, *monitors)
        step = statistics.median(each.cpu for each in took)
        shares = {type(each).__name__: _spent([each], steps) / (step - _spent(monitors, steps)) for each in monitors}
        rows.append({"workload": workload.name, "step_seconds": step, **shares, "both": sum(shares.values())})
        print(rows[-1], flush=True)
    table = [
        [
            row["workload"],
            *(f"{row[name]:.2%}" for name in ("CheckpointFractionMonitor", "GradientNormMonitor", "both")),
            f"{GOAL:.0%} {'met' if row['both'] <= GOAL else '**missed**'}",
        ]
        for row in rows
    ]
    head = ["model", "`CheckpointFractionMonitor`", "`GradientNormMonitor`", "both", "goal"]
    write("monitors", {**system(threads), "goal": GOAL, "rows": rows}, table, head)


def _spent(monitors: list[Any], steps: int) -> float:
    """In all hooks in a step: the median of the last ``steps``."""
    calls = len(HOOKS)
    return sum(
        statistics.median(
            sum(hook.cpu for hook in each.took[begin : begin + calls])
            for begin in range(len(each.took) - calls * steps, len(each.took), calls)
        )
        for each in monitors
    )


if __name__ == "__main__":
    main()
