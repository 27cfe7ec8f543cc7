"""Repeated timings as ratios, and where figures are written: JSON, and a table in the documentation."""

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class Took(NamedTuple):
    """Seconds: of this process on the CPU, whatever else the machine is doing, and on the wall."""

    cpu: float
    wall: float


def now() -> Took:
    """This moment."""
    return Took(time.process_time(), time.perf_counter())


def since(start: Took) -> Took:
    """What has passed."""
    end = now()
    return Took(end.cpu - start.cpu, end.wall - start.wall)


def timed(function: Callable[[], Any]) -> Took:
    """How long a call takes."""
    start = now()
    function()
    return since(start)


def interleaved(kinds: Mapping[str, Callable[[], Sequence[Took]]], rounds: int, seed: int = 0) -> list[dict[str, Took]]:
    """For each round, the median step of each kind; in a round the kinds take turns, in an order drawn anew."""
    order = random.Random(seed)
    found = []
    for _ in range(rounds):
        names = list(kinds)
        order.shuffle(names)
        steps = {name: kinds[name]() for name in names}
        found.append(
            {name: Took(*(statistics.median(each) for each in zip(*steps[name], strict=True))) for name in kinds}
        )
    return found


def median_of(steps: Sequence[Took]) -> Took:
    """Of each kind of time by itself."""
    return Took(*(statistics.median(each) for each in zip(*steps, strict=True)))


def ratios(rounds: Sequence[Mapping[str, Took]], of: str, to: str) -> dict[str, float]:
    """The median over the rounds of the ratio of two kinds, by CPU and wall time, and the quartiles of the first."""
    cpu = [each[of].cpu / each[to].cpu for each in rounds]
    wall = [each[of].wall / each[to].wall for each in rounds]
    low, _, high = statistics.quantiles(cpu, n=4) if len(cpu) > 1 else (cpu[0],) * 3
    return {"ratio": statistics.median(cpu), "low": low, "high": high, "wall_ratio": statistics.median(wall)}


def system(threads: int) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "device": f"CPU, {threads} thread{'s' if threads > 1 else ''}",
        "system": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "lightning", "pytorch-optimizer")},
    }


def write(name: str, result: Mapping[str, Any], table: Iterable[Sequence[str]], head: Sequence[str]) -> None:
    """``results/NAME.json``, and the table between the marks of that name in the documentation."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    write_table(name, table, head)


def write_table(name: str, table: Iterable[Sequence[str]], head: Sequence[str]) -> None:
    """The table between the marks of that name in the documentation."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *table]]
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])
    print(*lines, sep="\n")


def threads_of(options: Any) -> int:
    """Set the number of threads and the seed."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return int(options.threads)
