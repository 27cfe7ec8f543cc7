"""What the check of the replay costs on the first step of a fit, in forward-backward passes.

``python benchmarks/replay_check.py`` prints, for the MLP and ResNet-18, the time of the first step with the check and
without it, and their difference over the time of one forward and backward. CPU time of the process; the median over
rounds that take turns.
"""

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from workloads import MLP, RESNET_16, Net, Workload

from lightning_same import SAM, with_sam


class FirstStep(pl.Callback):
    """Times the first step."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.took = time.process_time() - self.start


def first_step(workload: Workload, check: bool) -> float:
    """Seconds of the first step of a fit."""
    watch = FirstStep()
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(with_sam(Net(workload), SAM(), check_replay=check), workload.loader(2))
    return watch.took


def one_pass(workload: Workload) -> float:
    """Seconds of a forward and backward, after a first one."""
    network, (x, y) = workload.network(), workload.batch()
    for _ in range(3):
        start = time.process_time()
        torch.nn.functional.cross_entropy(network(x), y).backward()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for workload in (MLP, RESNET_16):
        first_step(workload, True)
        on, off, passes = zip(
            *((first_step(workload, True), first_step(workload, False), one_pass(workload)) for _ in range(rounds)),
            strict=True,
        )
        extra, alone = statistics.median(on) - statistics.median(off), statistics.median(passes)
        print(
            f"{workload.name}: first step {1e3 * statistics.median(on):.1f} ms with the check,"
            f" {1e3 * statistics.median(off):.1f} ms without: {extra / alone:.1f} forward-backward passes once in a fit"
        )


if __name__ == "__main__":
    main()
