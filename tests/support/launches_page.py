"""What a step of ResNet-50 launches on an accelerator beyond its passes, and how long the host replays.

``PYTHONPATH=tests:benchmarks python -m support.launches_page`` writes ``launches.json`` and ``replay_host.json`` in
``benchmarks/results/``, and the tables in ``docs/benchmarks.md``.

- Operations: in fits on torch's meta device, whose tensors have a shape and no values. So everything takes the way of
  accelerators, and reading a value is an error. Counted are those that a step dispatches, less those of a plain step
  that takes as many passes. Views are no operations. One on a list of tensors counts once where a GPU's kernel takes
  the whole list, and once for each tensor where it does not: for mixed dtypes, and for tensors that lie unlike.
- Host time: CPU time of the process within the functions that copy the batch, take the state and put it back, those
  that look whether weights were written among them; the sum over a step, and its median over the steps. ResNet-50's
  modules with tensors of one element each, on the CPU, so that operations take the time of their call; each step writes
  to all buffers. Values are put back without being compared, as on accelerators.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from figures import system, threads_of, write
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet50

from lightning_same import AESAM, SAM, with_sam
from lightning_same.replay import tensor_copies
from lightning_same.replay.undisturbed import ReplayState
from lightning_same.rules.timing import EveryStep
from lightning_same.two_pass import routes
from lightning_same.two_pass.written_weights import WeightsBefore
from support.counting import ALL_RULES
from support.launches import KINDS, Images, beyond_passes, launched

LIMIT = 60
"""Operations a step beyond its passes."""

MILLISECONDS = 1.0
"""Of the host, for the replay."""


def most_operations(rule: Any, kind: str, plain: Any) -> int:
    """The most that a step of ResNet-50 launches beyond its passes."""
    settling = 2 if isinstance(rule.timing, EveryStep) else 10
    module = Images(resnet50, KINDS[kind][1], size=64, steps=settling + 2)
    values = 1.0 if isinstance(rule, AESAM) else None  # It decides on the host, by the size of g.
    steps = launched(module, rule, KINDS[kind][0], values, settling=settling)
    return max(names.total() for _, names in beyond_passes(steps, plain))


class OneElement(pl.LightningModule):
    """A network whose tensors have one element each; its training step reads all weights and writes to all buffers."""

    def __init__(self, make: Callable[[], nn.Module], steps: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.net = make()
        self.steps = steps
        for module in self.net.modules():
            for name, param in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.ones([1] * param.dim())))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.ones([1] * buffer.dim(), dtype=buffer.dtype))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch._foreach_add_(list(self.net.buffers()), 1)
        return torch.stack([param.sum() for param in self.net.parameters()]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([torch.zeros(1)] * self.steps, batch_size=None)


class Steps(Callback):
    """Sums up the time of the functions that it watches, for each step.

    Attributes:
        spent: seconds, by step.
    """

    def __init__(self) -> None:
        self.spent: list[float] = []
        self._now = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._now = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        self.spent.append(self._now)

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._now += time.process_time() - start

        return call


def host_milliseconds(make: Callable[[], nn.Module], steps: int = 300) -> float:
    """CPU time of the replay in a SAM step, the median over the steps."""
    watch = Steps()
    with ExitStack() as stack:
        for owner, name in (
            (ReplayState, "__init__"),
            (ReplayState, "restore"),
            (WeightsBefore, "__init__"),
            (WeightsBefore, "were_written"),
            (routes, "copy_of"),
        ):
            stack.enter_context(patch.object(owner, name, watch.watched(getattr(owner, name))))
        stack.enter_context(patch.object(tensor_copies, "_compares", lambda memory: False))
        pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
        ).fit(with_sam(OneElement(make, steps), SAM()))
    return 1e3 * statistics.median(watch.spent[20:])


def main() -> None:
    """Count, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = threads_of(parser.parse_args())
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # What other processes add is not the replay's.
    milliseconds = min(host_milliseconds(resnet50) for _ in range(5))
    operations: dict[str, dict[str, int]] = {type(rule).__name__: {} for rule in ALL_RULES}
    for kind, (precision, memory_format) in KINDS.items():
        plain = {
            passes: launched(Images(resnet50, memory_format, passes, 64, 4), None, precision)[-1] for passes in (1, 2)
        }
        for rule in ALL_RULES:
            operations[type(rule).__name__][kind] = most_operations(rule, kind, plain)
    most = max(number for row in operations.values() for number in row.values())
    goal = f"{LIMIT} {'met' if most <= LIMIT else '**missed**'}"
    where = system(threads)
    table = [[name, *map(str, row.values())] for name, row in operations.items()]
    table.append([f"goal: {goal}", *[""] * len(KINDS)])
    write("launches", {**where, "operations": operations}, table, ["rule", *KINDS])
    met = "met" if milliseconds <= MILLISECONDS else "**missed**"
    rows = [["SAM", f"{milliseconds:.2f}", f"{MILLISECONDS:g} {met}"]]
    headings = ["replay of ResNet-50, CPU time of the host", "ms a step", "goal"]
    write("replay_host", {**where, "milliseconds": milliseconds}, rows, headings)


if __name__ == "__main__":
    main()
