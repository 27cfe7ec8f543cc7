"""What a step costs on several processes (DDP, gloo): strong and weak scaling, and what the passes add to plain DDP.

``python benchmarks/processes.py`` starts itself on 1, 2 and 4 processes by torchrun, one thread each, and writes
``benchmarks/results/processes.json`` and the table in ``docs/benchmarks.md``. Times are on the wall, since processes
wait for each other; more processes than the machine has cores share them.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from figures import Took, interleaved, ratios, system, threads_of, write
from steps import Stopwatch
from workloads import RHO, TRANSFORMER, Net, Workload

from lightning_same import SAM, SAME, Rule, TwoPassOptions, with_sam

SIZES = (1, 2, 4)
KINDS: dict[str, tuple[Rule | None, TwoPassOptions]] = {
    "plain": (None, TwoPassOptions()),
    "SAM": (SAM(RHO), TwoPassOptions()),
    'SAM, ascent="local"': (SAM(RHO), TwoPassOptions(ascent="local")),
    "SAME": (SAME(1, 2.0, RHO), TwoPassOptions()),
    'SAME, ascent="local"': (SAME(1, 2.0, RHO), TwoPassOptions(ascent="local")),
}
WORKLOADS = {"transformer": (TRANSFORMER, 6, 8)}
"""Each with its rounds and timed steps."""


def module_of(workload: Workload, kind: str) -> pl.LightningModule:
    rule, options = KINDS[kind]
    if rule is None:
        return Net(workload)
    return with_sam(Net(workload), rule, ascent=options.ascent)


def fit(module: pl.LightningModule, workload: Workload, steps: int, processes: int) -> list[Took]:
    """The steps of a short fit on all processes, as this one sees them."""
    watch = Stopwatch(2)  # The second step is the one in which DDP arranges its buckets anew.
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, workload.loader((steps + 3) * processes))
    return watch.took


def worker(path: Path) -> None:
    """Measure on this process; the first one writes."""
    processes = int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = {}
    for name, (workload, rounds, steps) in WORKLOADS.items():
        for scaling in ("strong", "weak") if processes > 1 else ("weak",):
            share = workload._replace(batch_size=workload.batch_size // (processes if scaling == "strong" else 1))
            modules = {kind: module_of(share, kind) for kind in KINDS if processes > 1 or "local" not in kind}
            runs = {kind: partial(fit, module, share, steps, processes) for kind, module in modules.items()}
            measured = interleaved(runs, rounds)
            for kind in modules:
                key = f"{name}/{scaling}/{kind}"
                wall = sorted(each[kind].wall for each in measured)[len(measured) // 2]
                found[key] = {"seconds": wall, "over_plain": ratios(measured, kind, "plain")["wall_ratio"]}
    if int(os.environ["RANK"]) == 0:
        path.write_text(json.dumps(found))


def main() -> None:
    """Start the processes, gather, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    threads = threads_of(options)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.worker is not None:
        worker(options.worker)
        return
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in SIZES:
            path = Path(folder) / f"{processes}.json"
            arguments = [f"--nproc-per-node={processes}", __file__, "--threads", str(threads), "--worker", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            subprocess.run([*launcher, *arguments], check=True, env=environment)
            found[processes] = json.loads(path.read_text())
    rows = []
    for name in WORKLOADS:
        for scaling in ("weak", "strong"):
            for kind in KINDS:
                cells = [name, scaling, kind]
                for processes in SIZES:
                    # On one process both scalings are the same.
                    each = found[processes].get(f"{name}/{scaling if processes > 1 else 'weak'}/{kind}")
                    cells.append("" if each is None else f"{each['seconds'] * 1e3:.1f} ms ({each['over_plain']:.2f})")
                rows.append(cells)
    head = ["model", "scaling", "step of", *(f"{size} process{'es' * (size > 1)}" for size in SIZES)]
    write("processes", {**system(threads), "cores": os.cpu_count(), "found": found}, rows, head)


if __name__ == "__main__":
    main()
