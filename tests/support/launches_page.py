"""What a step of ResNet-50 launches on an accelerator beyond its passes, and how long the host replays.

``PYTHONPATH=tests:benchmarks python -m support.launches_page`` writes ``launches.json`` and ``replay_host.json`` in
``benchmarks/results/``, and the tables in ``docs/benchmarks.md``.

Both are measured in fits on torch's meta device, whose tensors have a shape and no values. So everything takes the way
of accelerators, reading a value is an error, and the time is the host's alone: no memory is read or written.

- Operations: those that a step dispatches, less those of a plain step that takes as many passes. Views are no
  operations. One on a list of tensors counts once where a GPU's kernel takes the whole list, and once for each tensor
  where it does not: for mixed dtypes, and for tensors that lie unlike.
- Host time: CPU time of the process within the functions that copy the batch, take the state and put it back, those
  that look whether weights were written among them; the sum over a step, and its median over the steps. Torch copies a
  list on the meta device tensor by tensor, and on a GPU by few kernels: beside the figure stands the part of it that is
  not in these copies.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from figures import system, threads_of, write
from lightning.pytorch.callbacks import Callback
from torchvision.models import resnet50

from lightning_same import AESAM, SAM
from lightning_same.replay.undisturbed import ReplayState
from lightning_same.rules.timing import EveryStep
from lightning_same.two_pass import routes
from lightning_same.two_pass.written_weights import WeightsBefore
from support.counting import ALL_RULES
from support.launches import KINDS, Images, beyond_passes, fit, launched

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


class Steps(Callback):
    """Sums up the time of the functions that it watches, for each step.

    Attributes:
        spent: seconds, by step: all, and those in copies of lists of tensors.
    """

    def __init__(self) -> None:
        self.spent: list[tuple[float, float]] = []
        self._inside = self._all = self._copies = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._all = self._copies = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        self.spent.append((self._all, self._copies))

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start, self._inside = time.process_time(), self._inside + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._inside -= 1
                self._all += time.process_time() - start

        return call

    def copied(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args)
            finally:
                if self._inside:
                    self._copies += time.process_time() - start

        return call


@contextmanager
def watching(steps: Steps) -> Iterator[None]:
    """Watch what the replay does beside the passes."""
    with ExitStack() as stack:
        for owner, name in (
            (ReplayState, "__init__"),
            (ReplayState, "restore"),
            (WeightsBefore, "__init__"),
            (WeightsBefore, "were_written"),
            (routes, "copy_of"),
        ):
            stack.enter_context(patch.object(owner, name, steps.watched(getattr(owner, name))))
        stack.enter_context(patch.object(torch, "_foreach_copy_", steps.copied(torch._foreach_copy_)))
        yield


def host_milliseconds(make: Callable[[], torch.nn.Module]) -> tuple[float, float]:
    """CPU time of the replay in a SAM step: all, and beside the copies of lists."""
    steps = Steps()
    # No value is there to be compared: the first step finds the weights as they were.
    with watching(steps), patch.object(torch, "equal", lambda *tensors: True):
        fit(Images(make, size=64, steps=30), SAM(), "32-true", [steps])
    everything, copies = zip(*steps.spent[5:], strict=True)
    rest = [one - other for one, other in zip(everything, copies, strict=True)]
    return 1e3 * statistics.median(everything), 1e3 * statistics.median(rest)


def main() -> None:
    """Count, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = threads_of(parser.parse_args())
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    everything, rest = host_milliseconds(resnet50)
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
    met = "met" if everything <= MILLISECONDS else "**missed**"
    rows = [["all", f"{everything:.2f}", f"{MILLISECONDS:g} {met}"], ["beside copies of lists", f"{rest:.2f}", ""]]
    result = {**where, "milliseconds": everything, "beside copies of lists": rest}
    write("replay_host", result, rows, ["replay of ResNet-50, CPU time of the host", "ms a step", "goal"])


if __name__ == "__main__":
    main()
