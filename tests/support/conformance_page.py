"""Writes the conformance matrix to docs/conformance.md: ``PYTHONPATH=tests python -m support.conformance_page``.

Every cell is computed anew, by `support.conformance`: on one process, and on two that talk over gloo.
"""

import support.environment  # noqa: F401
from support.conformance import CASES, FEATURES, Case, against_lightning, against_the_loop, feature_against_lightning
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


def check() -> tuple[dict[Case, tuple[str, str]], dict[str, str]]:
    """All cells of one world size."""
    cases = {case: (said(against_lightning(case)), near(against_the_loop(case))) for case in CASES}
    return cases, {name: said(feature_against_lightning(name, 1)) for name in FEATURES}


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


def main() -> None:
    two = Ranks(2)
    try:
        one_cases, one_features = check()
        two_cases, two_features = two.run(check)[0]
    finally:
        two.stop()
    parts = [HEAD]
    for title, cases, several in (("One process", one_cases, False), ("Two processes, DDP", two_cases, True)):
        parts.append(f"## {title}\n\nAcross: clipping, scheduler. In each cell: rho = 0, then rho > 0.\n")
        parts.append(table(cases, several) + "\n")
    parts.append("## One feature at a time, rho = 0\n\n| feature | one process | two processes |\n|---|---|---|")
    parts += [f"| `{name}` | {one_features[name]} | {two_features[name]} |" for name in FEATURES]
    (DOCS / "conformance.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
