"""The faults that `benchmarks/mutation.py` puts into the code: planted ones, and others drawn at random."""

import ast
import hashlib
import random
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import reach

HERE = Path(__file__).parent
ROOT = HERE.parent

PACKAGES = {
    "gradients": (
        "lightning_same/gradients",
        ["tests/gradients", "tests/rules", "tests/callbacks/test_checkpoint_effects.py"],
    ),
    "rules": ("lightning_same/rules", ["tests/rules", "tests/two_pass/test_oracles.py"]),
    "two_pass": ("lightning_same/two_pass", ["tests/two_pass", "tests/trainer/test_conformance.py"]),
    "replay": ("lightning_same/replay", ["tests/replay", "tests/two_pass"]),
    "curvature": ("lightning_same/curvature", ["tests/curvature", "tests/callbacks/test_sharpness.py"]),
    "statistics": (
        "lightning_same/experiments/study/statistics.py",
        ["tests/experiments/test_study_statistics.py", "tests/experiments/test_study_claims.py"],
    ),
}
"""Of each package, where its code is, and the tests that are to find its faults. So are the examples in docstrings."""

EXAMPLES = "tests/test_doctests.py"

SEVERAL = {
    "lightning_same/curvature/full_precision.py": ["tests/curvature/test_full_precision.py"],
    "lightning_same/gradients/grads.py": ["tests/gradients/test_partial_grads.py"],
    "lightning_same/gradients/sharding.py": ["tests/trainer/test_fsdp2_ways.py::test_processes_are_one"],
    "lightning_same/two_pass/checks.py": ["tests/two_pass/test_ascent_and_accumulation.py"],
    "lightning_same/two_pass/fit.py": ["tests/trainer/test_fsdp2_ways.py"],
    "lightning_same/two_pass/step.py": ["tests/two_pass/test_ascent_and_accumulation.py"],
}
"""Tests on several processes, or in a fresh one, for a file's faults that no test in one process finds."""

OPERATORS = [
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul")),
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in ("FloorDiv_Mul", "Mod_Add", "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq")),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in ("NotEq_Eq", "Is_IsNot", "IsNot_Is", "Lt_GtE", "Gt_LtE")),
    *(f"core/ReplaceUnaryOperator_{pair}" for pair in ("USub_UAdd", "Delete_Not", "Delete_Invert")),
    *(f"core/{name}" for name in ("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr")),
    *(f"core/{name}" for name in ("ReplaceOrWithAnd", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak")),
    *(f"core/{name}" for name in ("NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop")),
]
"""Of cosmic-ray's, one or two for each piece of syntax. Beside them, a statement is left out."""


class Fault(NamedTuple):
    """A change of one file.

    Attributes:
        package: whose fault it is, a key of `PACKAGES` or ``planted``.
        file: relative to the repository.
        line: its number.
        before: the lines that change.
        after: what becomes of them.
        tests: those that are to find it.
        several: tests on several processes, which are tried last.
        promise: what it breaks, of a planted fault.
        place: which of those in the file that look alike, counted from 1.
    """

    package: str
    file: str
    line: int
    before: str
    after: str
    tests: tuple[str, ...]
    several: tuple[str, ...] = ()
    promise: str = ""
    place: int = 1

    @property
    def name(self) -> str:
        """The same wherever in the file the lines stand."""
        return name_of(self.file, self.before, self.after, self.place)

    def put_into(self, whole: str) -> str:
        """The file with the fault."""
        lines = whole.split("\n")
        size = self.before.count("\n") + 1
        return "\n".join([*lines[: self.line - 1], *self.after.split("\n"), *lines[self.line - 1 + size :]])

    def state(self, by: str = "") -> str:
        """A checksum of the file and the test that has found the fault, or all its tests."""
        paths = [ROOT / self.file]
        for test in [by] if by else [*self.tests, *self.several]:
            place = ROOT / test.partition("::")[0]
            paths += sorted(place.rglob("*.py")) if place.is_dir() else [place]
        return checksum(*(path for path in paths if path.exists()))

    def is_known(self, known: dict[str, Any], again: bool = False) -> bool:
        """Whether the outcome of an earlier run still stands; a survivor's that is no fault always does.

        Args:
            known: the outcome; empty if there was no run.
            again: whether other survivors are to be tried again, whatever has changed.
        """
        survived = known.get("outcome") == "survived"
        if survived and self.name in equivalent():
            return True
        return bool(known) and not (survived and again) and known["state"] == self.state(known["by"])

    def reached_by(self, reached: dict[str, dict[str, Any]], cases: int, seconds: float) -> list[str]:
        """Of the tests, those that call the function in which the fault is, quick ones first.

        All, if it is in none, or in one that is newer than what is known of the tests.

        Args:
            reached: of each test, what it calls and how long it takes.
            cases: of a test with more parameters than that, so many are drawn.
            seconds: of CPU that all may take; the slowest are left out.
        """
        last = self.line + self.before.count("\n")
        function = reach.around((ROOT / self.file).read_text(), self.line, last)
        name = f"{self.file}:{function}"
        calling = [test for test, known in reached.items() if name in known["calls"]]
        everything = [test for test, known in reached.items() if reach.EVERYTHING in known["calls"]]
        by_name: dict[str, list[str]] = {}
        for test in [*calling, *everything] if calling else reached:
            by_name.setdefault(test.partition("[")[0], []).append(test)
        draws = random.Random(0)  # The same for each fault.
        some = [test for tests in by_name.values() for test in draws.sample(tests, min(cases, len(tests)))]
        some.sort(key=lambda test: reached[test]["seconds"])
        spent = accumulate(reached[test]["seconds"] for test in some)
        return [test for test, so_far in zip(some, spent, strict=True) if so_far <= seconds]


def name_of(file: str, before: str, after: str, place: int = 1) -> str:
    return f"{file}: {before.strip()} -> {after.strip()}" + (f" ({place})" if place > 1 else "")


def checksum(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


@cache
def equivalent() -> dict[str, str]:
    """Of faults by their names, why they are none."""
    entries = tomllib.loads((HERE / "equivalent_mutants.toml").read_text()).get("mutant", [])
    return {
        name_of(entry["file"], entry["before"], entry["after"], entry.get("place", 1)): entry["why"]
        for entry in entries
    }


def planted() -> list[Fault]:
    """The faults of the file."""
    faults = []
    for entry in tomllib.loads((HERE / "planted_faults.toml").read_text())["fault"]:
        before, after = entry["before"].strip("\n"), entry["after"].strip("\n")
        path = ROOT / entry["file"]
        code = path.read_text() if path.exists() else ""
        if code.count(before) != 1:  # The code has changed since: the fault wants to be written anew.
            print(f"Not tried, as the code stands {code.count(before)} times in {entry['file']}: {entry['promise']}")
            continue
        start = code.index(before)
        line = code.count("\n", 0, start) + 1
        begin, end = code.rfind("\n", 0, start) + 1, code.index("\n", start + len(before))
        whole = code[begin:end]
        faults.append(
            Fault(
                "planted",
                entry["file"],
                line,
                whole,
                whole.replace(before, after),
                tuple(entry["tests"]),
                promise=entry["promise"],
            )
        )
    return faults


def drawn(package: str, number: int, seed: int) -> tuple[list[Fault], int]:
    """So many faults of a package, drawn at random, and how many there are in all."""
    place, tests = PACKAGES[package]
    files = sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]
    faults = []
    for path in files:
        code, file = path.read_text(), str(path.relative_to(ROOT))
        alike: Counter[str] = Counter()
        for line, before, after in sorted(set(changes(code))):
            alike[name_of(file, before, after)] += 1
            place = alike[name_of(file, before, after)]
            faults.append(
                Fault(package, file, line, before, after, (*tests, EXAMPLES), tuple(SEVERAL.get(file, ())), place=place)
            )
    # By the name's own number, so that another fault elsewhere does not change which are drawn.
    faults.sort(key=lambda fault: random.Random(f"{seed}/{fault.name}").random())
    return faults[:number], len(faults)


def changes(code: str) -> Iterator[tuple[int, str, str]]:
    """The number of the first line that changes, the lines, and what becomes of them."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    left_out = set(lines_of_no_effect(code))
    for name in OPERATORS:
        operator = get_operator(name)()
        positions = [place for node in ast_nodes(get_ast(code)) for place in operator.mutation_positions(node)]
        for occurrence, ((line, column), _) in enumerate(positions):
            if (line, column) not in left_out:
                mutated = mutate_code(code, operator, occurrence)
                if mutated is not None and mutated != code:
                    yield differing(code, mutated)
    lines = code.split("\n")
    for node in ast.walk(ast.parse(code)):
        called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if called or isinstance(node, ast.AugAssign | ast.Delete):
            before = lines[node.lineno - 1 : node.end_lineno]
            yield node.lineno, "\n".join(before), " " * node.col_offset + "pass"


def differing(one: str, two: str) -> tuple[int, str, str]:
    """The first and the last line in which they differ, and all between."""
    a, b = one.split("\n"), two.split("\n")
    start = next(number for number, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    stop = 0
    while stop < min(len(a), len(b)) - start and a[-1 - stop] == b[-1 - stop]:
        stop += 1
    return start + 1, "\n".join(a[start : len(a) - stop]), "\n".join(b[start : len(b) - stop])


def lines_of_no_effect(code: str) -> Iterator[tuple[int, int]]:
    """Every place in an annotation, a decorator of a type checker's, or the text of an error."""
    for node in ast.walk(ast.parse(code)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            parts += [node.returns, *(arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg))]
            parts += [part for part in node.decorator_list if ast.unparse(part) in ("override", "overload")]
            if any(ast.unparse(part) == "overload" for part in node.decorator_list):
                parts.append(node)
        elif isinstance(node, ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.Raise):
            parts.append(node.exc)
        for part in parts:
            if part is not None:
                for line in range(part.lineno, part.end_lineno + 1):  # type: ignore[attr-defined]
                    start = part.col_offset - 1 if line == part.lineno else 0  # type: ignore[attr-defined]
                    stop = part.end_col_offset if line == part.end_lineno else 400  # type: ignore[attr-defined]
                    yield from ((line, column) for column in range(start, stop))
