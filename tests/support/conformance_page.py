"""Writes the conformance matrix to docs/conformance.md: ``PYTHONPATH=tests python -m support.conformance_page``.

Every cell is computed anew, by `support.conformance`: on one process, and on two that talk over gloo. With names of
parts (``matrix``, ``rules``, ``features``), those alone; the others stay as they are in the page.
"""

import re
import sys
from collections.abc import Callable

import support.environment  # noqa: F401
from support.conformance import (
    CASES,
    FEATURES,
    OF_OTHER_RULES,
    Case,
    against_lightning,
    against_the_loop,
    feature_against_lightning,
)
from support.conformance_rules import OTHER_RULES
from support.paths import DOCS
from support.ranks import Ranks

HEAD = """# The conformance matrix

Each cell compares training under this package with training without it, for one combination of Trainer features. A
test checks every cell (`tests/trainer/test_conformance.py`); the modules, the data and the hand-written loop are in
`tests/support/conformance.py`. The command `PYTHONPATH=tests python -m support.conformance_page` made this page on a
CPU.

**rho = 0.** Pass two runs, but at w itself. The weights, the optimizer's state, buffers, random generators,
attributes, metrics, logged rows, the order of hooks and the checkpoint file are compared with those of plain
Lightning. `=` means equal, bit for bit.

**rho > 0.** SAM's weights after three epochs are compared with those of a hand-written loop in plain PyTorch. The
number is the largest difference of any weight. On two processes, each process rounds its half of the batch on its
own, which shows in bfloat16 and float16. Each half also overflows on its own, so there is no loop to compare with.
"""

RULES_HEAD = """## Other rules, rho > 0

Rules to which the size of g matters (USAM, AESAM), rules that remember (VaSSO, AESAM, LookSAM, MomentumSAM), and rules
with steps of one pass (AESAM, LookSAM, MomentumSAM), each against a loop that writes its formula out in plain PyTorch
(`tests/support/conformance_rules.py`). In each cell: the largest difference of any weight. Gradients are clipped by
norm, and a scheduler steps with the optimizer.
"""

Cells = dict[str, dict[Case, str]]
"""What is in a line, by its name."""


def matrix() -> dict[Case, tuple[str, str]]:
    return {case: (said(against_lightning(case)), near(against_the_loop(case))) for case in CASES}


def rules() -> Cells:
    return {rule: {case: near(against_the_loop(case, rule)) for case in OF_OTHER_RULES} for rule in OTHER_RULES}


def features() -> dict[str, str]:
    return {name: said(feature_against_lightning(name, 1)) for name in FEATURES}


def said(differences: list[str]) -> str:
    return "=" if not differences else f"{len(differences)} differ"


def near(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def table(found: dict[Case, tuple[str, str]], several: bool) -> str:
    """Accumulation and precision down, clipping and scheduler across."""
    columns = list(dict.fromkeys((case.clipping, case.scheduler) for case in CASES))
    lines = ["| | " + " | ".join(f"{clipping}, {scheduler}" for clipping, scheduler in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for accumulate, precision in dict.fromkeys((case.accumulate, case.precision) for case in CASES):
        cells = []
        for column in columns:
            exact, close = found[Case(accumulate, precision, *column)]
            cells.append(exact if several and precision.endswith("overflows") else f"{exact} {close}")
        lines.append(f"| accumulate {accumulate}, {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_rules(cells: Cells, several: bool) -> str:
    """A line for each rule; no column on several processes for a precision that overflows."""
    columns = [case for case in OF_OTHER_RULES if not (several and case.precision.endswith("overflows"))]
    lines = ["| | " + " | ".join(f"accumulate {case.accumulate}, {case.precision}" for case in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    lines += [f"| `{rule}` | " + " | ".join(row[case] for case in columns) + " |" for rule, row in cells.items()]
    return "\n".join(lines)


def write_matrix(one: dict[Case, tuple[str, str]], two: dict[Case, tuple[str, str]]) -> str:
    across = "Across: clipping, scheduler. In each cell: rho = 0, then rho > 0."
    return (
        f"## One process\n\n{across}\n\n{table(one, False)}\n\n"
        f"## Two processes, DDP\n\n{across}\n\n{table(two, True)}\n"
    )


def write_rules(one: Cells, two: Cells) -> str:
    return (
        f"{RULES_HEAD}\n### One process\n\n{table_of_rules(one, False)}\n\n"
        f"### Two processes, DDP\n\n{table_of_rules(two, True)}\n"
    )


def write_features(one: dict[str, str], two: dict[str, str]) -> str:
    lines = ["| feature | one process | two processes |", "|---|---|---|"]
    lines += [f"| `{name}` | {one[name]} | {two[name]} |" for name in FEATURES]
    return "## One feature at a time, rho = 0\n\n" + "\n".join(lines) + "\n"


PARTS: dict[str, tuple[Callable[[], object], Callable[..., str]]] = {
    "matrix": (matrix, write_matrix),
    "rules": (rules, write_rules),
    "features": (features, write_features),
}
"""How each part is computed, on any number of processes, and how it is written."""


def parts_of(page: str) -> dict[str, str]:
    """The parts of a page that was written before."""
    starts = {"matrix": "## One process", "rules": "## Other rules", "features": "## One feature"}
    ends = "|".join(starts.values())
    found = {name: re.search(rf"^{start}.*?(?=^(?:{ends})|\Z)", page, re.M | re.S) for name, start in starts.items()}
    return {name: match[0].strip() + "\n" for name, match in found.items() if match}


def main(names: list[str]) -> None:
    page = DOCS / "conformance.md"
    parts = parts_of(page.read_text())
    two = Ranks(2)
    try:
        for name in names or PARTS:
            compute, write = PARTS[name]
            parts[name] = write(compute(), two.run(compute)[0])
    finally:
        two.stop()
    page.write_text("\n".join([HEAD, *(parts[name] for name in PARTS if name in parts)]))


if __name__ == "__main__":
    main(sys.argv[1:])
