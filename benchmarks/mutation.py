"""How many small faults in the code do the tests find? Faults are put in one at a time, and the tests run on each.

    pip install -e '.[test,mutation]'
    python benchmarks/mutation.py rules gradients --sample 40   # faults by cosmic-ray's operators, drawn at random
    python benchmarks/mutation.py planted                       # those in planted_faults.toml, one for each promise
    python benchmarks/mutation.py planted --only dtype          # of them, those whose promise or code holds this
    python benchmarks/mutation.py --report                      # the last scores

What was found is kept in ``results/mutation.json`` after each fault, and the same command goes on from there; a fault
is tried again once its file or its tests have changed. Survivors that are no faults, for nothing that anybody can
observe differs, are in ``equivalent_mutants.toml`` with the reason.

The tree is copied, and faults are put into the copy. One process imports torch, Lightning and what else takes long, and
is forked for each fault: then a fault that is found at once takes a second or two. Before, the tests run once to learn
which functions each of them calls (`reach.py`): a fault inside a function is tried with the tests that call it, the
quickest first.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import figures
import reach

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "mutation.json"
REACHED = ROOT / "build" / "reached.json"
"""What the tests call, by file of tests, each with the file's checksum."""

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

SLOW = "ranks"
"""Tests that use this fixture start processes, and run only where a planted fault asks for them."""

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

PRELOADED = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "lightning.pytorch",
    "torchmetrics",
    "hypothesis.stateful",
    "scipy.stats",
    "pandas",
    "pytest",
    "typing_extensions",
)


class Fault(NamedTuple):
    """A change of one file.

    Attributes:
        package: whose fault it is, a key of `PACKAGES` or ``planted``.
        file: relative to the repository.
        line: its number.
        before: the lines that change.
        after: what becomes of them.
        tests: those that are to find it.
        promise: what it breaks, of a planted fault.
    """

    package: str
    file: str
    line: int
    before: str
    after: str
    tests: tuple[str, ...]
    promise: str = ""

    @property
    def name(self) -> str:
        """The same wherever in the file the lines stand."""
        return f"{self.file}: {self.before.strip()} -> {self.after.strip()}"

    def put_into(self, whole: str) -> str:
        """The file with the fault."""
        lines = whole.split("\n")
        size = self.before.count("\n") + 1
        return "\n".join([*lines[: self.line - 1], *self.after.split("\n"), *lines[self.line - 1 + size :]])

    def state(self) -> str:
        """A checksum of the file and the tests."""
        paths = [ROOT / self.file]
        for test in self.tests:
            place = ROOT / test.partition("::")[0]
            paths += sorted(place.rglob("*.py")) if place.is_dir() else [place]
        return checksum(*paths)

    def reached_by(self, reached: dict[str, dict[str, Any]]) -> list[str]:
        """Of the tests, those that call the function in which the fault is; all, if it is in none. Quick ones first."""
        last = self.line + self.before.count("\n")
        function = reach.around((ROOT / self.file).read_text(), self.line, last)
        calls = {f"{self.file}:{function}", reach.EVERYTHING}
        some = {test: known for test, known in reached.items() if function is None or calls & set(known["calls"])}
        return sorted(some, key=lambda test: some[test]["seconds"])


def checksum(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


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
                entry["promise"],
            )
        )
    return faults


def drawn(package: str, number: int, seed: int) -> tuple[list[Fault], int]:
    """So many faults of a package, drawn at random, and how many there are in all."""
    place, tests = PACKAGES[package]
    tests = [*tests, EXAMPLES]
    files = sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]
    faults = []
    for path in files:
        code, file = path.read_text(), str(path.relative_to(ROOT))
        for line, before, after in changes(code):
            faults.append(Fault(package, file, line, before, after, tuple(tests)))
    faults = list({fault.name: fault for fault in faults}.values())
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


class Copy:
    """A copy of the tree in which faults are tried."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.log = folder / "log.txt"
        self.notes = folder / "notes.json"
        for part in ("lightning_same", "tests", "configs", "docs", "notebooks", "benchmarks"):
            shutil.copytree(ROOT / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for path in ROOT.iterdir():
            if path.is_file() and path.suffix in (".toml", ".md"):
                shutil.copy(path, self.root)

    def try_out(self, fault: Fault, tests: list[str] | None, limit: float) -> tuple[str, str, float]:
        """What the tests say of a fault (``found``, ``survived``, ``time-out``), which said it, and the CPU time.

        Args:
            fault: what to try.
            tests: those to run, in this order. Default: all those of the fault, also on several processes.
            limit: seconds until a time-out.
        """
        if tests == []:
            return "survived", "", 0.0
        place = self.root / fault.file
        whole = place.read_bytes()
        place.write_text(fault.put_into(whole.decode()))
        files = fault.tests if tests is None else list(dict.fromkeys(test.partition("::")[0] for test in tests))
        try:
            code, seconds = self.tests(files, limit, [] if tests is None else [OneProcess(), reach.Chosen(tests)])
        finally:
            place.write_bytes(whole)
        said = self.failed()
        if code is None:
            return "time-out", "", seconds
        if code not in (0, 1, 2):
            raise SystemExit(f"pytest ended with {code} on {fault.name}:\n{self.log.read_text()[-2000:]}")
        return ("found" if code else "survived"), (said[0] if said else ""), seconds

    def failed(self) -> list[str]:
        """What the last run of tests said of those that failed."""
        return re.findall(r"^(?:FAILED|ERROR) (\S+)", self.log.read_text(errors="replace"), re.MULTILINE)

    def reached(self, files: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Of each test of these files, which functions it calls and how long it takes; kept by file in `REACHED`."""
        known = known_reached()
        states = {file: checksum(self.root / file) for file in files}
        left = [file for file in files if known.get(file, {}).get("state") != states[file]]
        sources = {path: path.read_text() for path in sorted((self.root / "lightning_same").rglob("*.py"))}
        for file in left:
            for path, code in sources.items():
                path.write_text(reach.with_notes(code, str(path.relative_to(self.root))))
            try:
                self.tests([file], 3600, [OneProcess()], notes=True)
            finally:
                for path, code in sources.items():
                    path.write_text(code)
            found = json.loads(self.notes.read_text())
            if found["failed"]:
                code, _ = self.tests(found["failed"], 3600, [OneProcess()])
                if code:
                    raise SystemExit(f"Without a fault the tests fail:\n{self.log.read_text()[-3000:]}")
                for test in found["failed"]:
                    found["tests"][test]["calls"] = [reach.EVERYTHING]
            known = known_reached() | {file: {"state": states[file], "tests": found["tests"]}}
            REACHED.parent.mkdir(exist_ok=True)
            write_whole(REACHED, json.dumps(known))
            print(f"{len(found['tests']):4} tests of {file}", flush=True)
        known = known_reached()
        return {test: seen for file in files for test, seen in known[file]["tests"].items()}

    def tests(
        self, tests: Sequence[str], limit: float, plugins: list[Any], *, notes: bool = False
    ) -> tuple[int | None, float]:
        """The exit code of pytest, None after too long, and the CPU time that it took."""
        child = os.fork()
        if child == 0:
            os._exit(self._run(tests, plugins, notes))
        end = time.monotonic() + limit
        try:
            while time.monotonic() < end:
                pid, status, usage = os.wait4(child, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
                time.sleep(0.1)
        finally:
            kill_group(child)
        _, _, usage = os.wait4(child, 0)
        return None, usage.ru_utime + usage.ru_stime

    def _run(self, tests: Sequence[str], plugins: list[Any], notes: bool) -> int:
        import pytest

        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with self.log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(self.root)
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ["PYTHONPATH"] = str(self.root)
        sys.path[:0] = [str(self.root), str(self.root / "tests")]
        options = ["-q", "-p", "no:cacheprovider", "-n", "0", "--hypothesis-seed=0", "-W", "ignore"]
        if not notes:
            return int(pytest.main(["-x", *options, *tests], plugins=plugins))
        taken = reach.Notes()
        code = int(pytest.main([*options, *tests], plugins=[*plugins, taken]))
        self.notes.write_text(json.dumps({"tests": taken.tests, "failed": taken.failed}))
        return code


class OneProcess:
    """Leaves out the tests that start processes."""

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        items[:] = [item for item in items if SLOW not in getattr(item, "fixturenames", ())]


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def preload() -> None:
    """Import what all tests need and what is not of this repository."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)


def equivalent() -> dict[str, str]:
    """Of faults by their names, why they are none."""
    entries = tomllib.loads((HERE / "equivalent_mutants.toml").read_text()).get("mutant", [])
    return {
        f"{entry['file']}: {entry['before'].strip()} -> {entry['after'].strip()}": entry["why"] for entry in entries
    }


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def known_reached() -> dict[str, Any]:
    return json.loads(REACHED.read_text()) if REACHED.exists() else {}


def save(results: dict[str, Any]) -> None:
    write_whole(RESULTS, json.dumps(results, indent=1, sort_keys=True) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Never a part of it, and nothing of another process's."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def run(package: str, number: int, seed: int, slowness: float, only: str) -> None:
    faults, total = (planted(), 0) if package == "planted" else drawn(package, number, seed)
    results = load()
    known = results.get(package, {}).get("faults", {})
    states = {fault.name: fault.state() for fault in faults}
    left = [
        fault
        for fault in faults
        if known.get(fault.name, {}).get("state") != states[fault.name]
        and re.search(only, f"{fault.name} {fault.promise}")
    ]
    left.sort(
        key=lambda fault: known.get(fault.name, {}).get("outcome") == "found"
    )  # What was found before comes last.
    total = total or len(faults)
    print(f"{package}: {len(faults)} faults of {total}, {len(faults) - len(left)} of them known", flush=True)
    kept = {fault.name: known[fault.name] for fault in faults if fault.name in known}
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        reached = copy.reached(reach.files_of(ROOT, left[0].tests)) if left and package != "planted" else {}
        without_a_fault: dict[tuple[str, ...], float] = {}
        for fault in left:
            tests = None if package == "planted" else fault.reached_by(reached)
            if tests is not None:
                seconds = sum(reached[test]["seconds"] for test in tests)
            elif fault.tests in without_a_fault:
                seconds = without_a_fault[fault.tests]
            else:
                code, seconds = copy.tests(fault.tests, 3600, [])
                without_a_fault[fault.tests] = seconds
                if code:
                    raise SystemExit(f"Without a fault the tests fail:\n{copy.log.read_text()[-3000:]}")
            outcome, by, seconds = copy.try_out(fault, tests, 60 + slowness * seconds)
            kept[fault.name] = {
                "line": fault.line,
                "outcome": outcome,
                "first": known[fault.name].get("first") if fault.name in known else outcome,
                "by": by,
                "cpu_seconds": round(seconds, 1),
                "state": states[fault.name],
            } | ({"promise": fault.promise} if fault.promise else {})
            results = load()
            results[package] = {"of": total, "seed": seed, "faults": kept}
            save(results)
            print(f"{outcome:9} {seconds:6.1f} s  {fault.file}:{fault.line}  {by}", flush=True)
            if outcome == "survived":
                print(f"    - {fault.before.strip()}\n    + {fault.after.strip()}", flush=True)
    report()


def report() -> None:
    """Print the scores and write them to the documentation. A fault that makes the tests hang is found."""
    rows = []
    reasons = equivalent()
    for package, content in load().items():
        faults = content["faults"]
        missed = [name for name, fault in faults.items() if fault["outcome"] == "survived"]
        same = [name for name in missed if name in reasons]
        found, real = len(faults) - len(missed), len(faults) - len(same)
        first = [fault.get("first") for fault in faults.values()]
        low, high = interval(found, real)
        rows.append(
            (
                package,
                str(content["of"] or ""),
                str(len(faults)),
                "" if None in first else str(len(first) - first.count("survived")),
                str(found),
                str(len(same)),
                str(real - found),
                f"{100 * found / max(1, real):.0f}%",
                f"{100 * low:.0f}% to {100 * high:.0f}%" if content["of"] else "",
            )
        )
    figures.write_table("mutation", rows, HEAD)


HEAD = ("package", "faults", "tried", "found at first", "found now", "equivalent", "missed", "score", "95% interval")


def interval(found: int, tried: int) -> tuple[float, float]:
    """The share of all faults that are found, by Clopper and Pearson's interval from a random sample of them."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, found, tried - found + 1)) if found else 0.0
    high = float(beta.ppf(0.975, found + 1, tried - found)) if found < tried else 1.0
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="*", metavar="PACKAGE", help=", ".join([*PACKAGES, "planted"]))
    parser.add_argument("--sample", type=int, default=30, help="faults of each package")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--slowness", type=float, default=20, help="times the CPU time of the tests, until a time-out")
    parser.add_argument("--only", default="", metavar="PATTERN", help="try those alone whose code or promise holds it")
    parser.add_argument("--report", action="store_true", help="print the last scores")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    if unknown := set(arguments.package) - {*PACKAGES, "planted"}:
        parser.error(f"PACKAGE must be among {', '.join([*PACKAGES, 'planted'])}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM; the same command goes on"))
    preload()
    for package in arguments.package:
        run(package, arguments.sample, arguments.seed, arguments.slowness, arguments.only)


if __name__ == "__main__":
    main()
