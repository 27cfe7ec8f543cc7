"""The package's layers: which file may import which, and which libraries each file may know.

`LAYERS` is the design; the code is held to it. A new file needs a row, and a row needs its file.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "lightning_same"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

ARITHMETIC = {"torch", "typing_extensions"}
LIGHTNING = ARITHMETIC | {"lightning"}


class Layer(NamedTuple):
    """What one file may import: files of this package, and libraries beside the standard one."""

    files: set[str]
    libraries: set[str]


LAYERS = {
    # Torch only.
    "parts": Layer(set(), ARITHMETIC),
    "sharding": Layer(set(), ARITHMETIC),
    "foreach": Layer({"sharding"}, ARITHMETIC),
    "memory": Layer({"foreach", "sharding"}, ARITHMETIC),
    "checkpoints": Layer({"foreach", "sharding"}, ARITHMETIC),
    "norms": Layer({"checkpoints", "foreach", "sharding"}, ARITHMETIC),
    "timing": Layer({"foreach", "memory", "parts"}, ARITHMETIC),
    "perturbations": Layer({"foreach", "memory", "parts"}, ARITHMETIC),
    "combinations": Layer({"checkpoints", "foreach", "memory", "parts", "timing"}, ARITHMETIC),
    "rule": Layer({"combinations", "foreach", "memory", "parts", "perturbations", "sharding", "timing"}, ARITHMETIC),
    "rules": Layer({"combinations", "parts", "perturbations", "rule", "timing"}, ARITHMETIC),
    "lanczos": Layer({"foreach"}, ARITHMETIC),
    "randomness": Layer(set(), ARITHMETIC | {"numpy"}),
    "hessian": Layer({"lanczos", "randomness"}, ARITHMETIC),
    "curvature": Layer({"hessian", "lanczos"}, ARITHMETIC),
    "spectrum": Layer({"hessian", "lanczos"}, ARITHMETIC),
    # Lightning. `two_pass` and `callbacks` stand side by side.
    "optimizers": Layer({"timing"}, LIGHTNING),
    "replay": Layer({"randomness"}, LIGHTNING | {"numpy", "torchmetrics"}),
    "gradients": Layer(set(), LIGHTNING),
    "silence": Layer(set(), LIGHTNING),
    "options": Layer({"parts"}, ARITHMETIC),
    "processes": Layer(set(), LIGHTNING),
    "store": Layer({"processes"}, LIGHTNING),
    "refusals": Layer({"options", "parts", "processes", "rule"}, LIGHTNING),
    "two_pass": Layer(
        {"foreach", "gradients", "memory", "optimizers", "options", "processes"}
        | {"refusals", "replay", "rule", "silence", "store", "timing"},
        LIGHTNING,
    ),
    "mixin": Layer({"options", "refusals", "rule", "two_pass"}, LIGHTNING),
    "mixing": Layer({"mixin", "options", "refusals", "rule"}, LIGHTNING),
    "probe": Layer(
        {"gradients", "optimizers", "processes", "refusals", "replay", "rules", "sharding", "silence", "store"},
        LIGHTNING,
    ),
    "monitor": Layer({"gradients", "parts", "probe", "rule"}, LIGHTNING),
    "sharpness": Layer(
        {"curvature", "hessian", "optimizers", "parts", "probe", "refusals", "replay", "rule", "rules", "silence"}
        | {"timing"},
        LIGHTNING,
    ),
    "callbacks": Layer({"checkpoints", "foreach", "gradients", "monitor", "norms", "optimizers", "probe"}, LIGHTNING),
    "__init__": Layer(
        {"callbacks", "checkpoints", "curvature", "hessian", "memory", "mixin", "mixing", "options", "rule", "rules"}
        | {"sharpness", "spectrum", "timing"},
        set(),
    ),
    # The study. Its tables, statistics and pictures know neither torch nor Lightning.
    "experiments.study.plan": Layer(set(), {"yaml"}),
    "experiments.study.writing": Layer(set(), set()),
    "experiments.study.run": Layer(
        {"cli", "experiments.study.plan", "experiments.study.writing"}, LIGHTNING | {"filelock", "yaml"}
    ),
    "experiments.study.workers": Layer({"experiments.study.plan", "experiments.study.run"}, {"torch"}),
    "experiments.study.check": Layer({"cli", "experiments.study.plan", "experiments.study.run"}, {"yaml"}),
    "experiments.study.progress": Layer({"experiments.study.plan", "experiments.study.workers"}, {"rich"}),
    "experiments.study.results": Layer({"experiments.study.plan"}, {"pandas"}),
    "experiments.study.statistics": Layer({"experiments.study.plan"}, {"numpy", "pandas", "scipy"}),
    "experiments.study.tables": Layer({"experiments.study.results", "experiments.study.statistics"}, {"pandas"}),
    "experiments.study.figures": Layer(set(), {"matplotlib", "pandas"}),
    "experiments.study.page": Layer(set(), {"markdown_it"}),
    "experiments.study.report": Layer(
        {
            f"experiments.study.{name}"
            for name in ("figures", "page", "plan", "results", "statistics", "tables", "writing")
        },
        {"pandas"},
    ),
    "experiments.study.command": Layer(
        {f"experiments.study.{name}" for name in ("check", "plan", "progress", "report", "run", "workers", "writing")},
        {"filelock", "rich", "torch"},
    ),
    "experiments.study.__init__": Layer({"experiments.study.command"}, set()),
    # The command line.
    "cli": Layer(
        {"combinations", "mixing", "options", "perturbations", "rule", "rules", "timing"}, LIGHTNING | {"jsonargparse"}
    ),
    "sharpness_command": Layer(
        {"cli", "curvature", "sharpness", "spectrum"}, LIGHTNING | {"jsonargparse", "matplotlib"}
    ),
    # Which word of the command line is served by what, so that it stands above all.
    "__main__": Layer({"cli", "experiments.study.__init__", "plots", "sharpness_command"}, set()),
    # Pictures of what was logged.
    "plots": Layer(set(), {"matplotlib", "numpy", "pandas", "tensorboard"}),
}


def source_files() -> dict[str, Path]:
    """Every module by its dotted name inside the package; the package's own is ``__init__``."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


FILES = source_files()

EXPERIMENTS = Layer(
    set(FILES),
    LIGHTNING | {"jsonargparse", "numpy", "sklearn", "torchmetrics", "torchvision"},
)
"""Experiments stand on top: they may import any file, and no file outside them imports them, but ``__main__``."""


def layer(name: str) -> Layer:
    if name in LAYERS:
        return LAYERS[name]
    assert name.startswith("experiments."), f"{name}.py has no row in LAYERS"
    return EXPERIMENTS


def module(dotted: str) -> str | None:
    """The file that a dotted name inside the package stands for, if it is one."""
    return next((name for name in (dotted, f"{dotted}.__init__".lstrip(".")) if name in FILES), None)


def imports(source: str) -> Iterator[str]:
    """Every absolute dotted name that the source imports, at any depth: ``from a import b`` imports ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(source: str) -> set[str]:
    """The files of this package that the source imports."""
    found = set()
    for dotted in imports(source):
        top, _, inside = dotted.partition(".")
        if top == PACKAGE:
            name = module(inside) or module(inside.rpartition(".")[0])
            assert name is not None, f"{dotted} is in no file of {PACKAGE}"
            found.add(name)
    return found


def imported_libraries(source: str) -> set[str]:
    """The top-level packages that the source imports, besides this one and the standard library."""
    return {dotted.partition(".")[0] for dotted in imports(source)} - {PACKAGE} - sys.stdlib_module_names


def test_every_file_has_a_row_and_every_row_its_file() -> None:
    study = {name for name in FILES if name.startswith("experiments.study.")}
    assert {name for name in FILES if not name.startswith("experiments.")} | study == LAYERS.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_the_files_below_it(name: str) -> None:
    above = imported_files(FILES[name].read_text()) - layer(name).files
    assert not above, f"{name} may not import {sorted(above)}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_the_libraries_of_its_layer(name: str) -> None:
    unknown = imported_libraries(FILES[name].read_text()) - layer(name).libraries
    assert not unknown, f"{name} may not import {sorted(unknown)}"


def test_neither_the_table_nor_the_files_have_a_cycle() -> None:
    allowed = {name: row.files for name, row in LAYERS.items()}
    actual = {name: imported_files(path.read_text()) for name, path in FILES.items()}
    for graph in (allowed, actual):
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the files


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import lightning_same", {"__init__"}),
        ("from lightning_same import SAM", {"__init__"}),
        ("from lightning_same import rules", {"rules"}),
        ("import lightning_same.rules as r", {"rules"}),
        ("from lightning_same.rules import SAM", {"rules"}),
        ("def later():\n    from lightning_same.cli import main", {"cli"}),
        ("if TYPE_CHECKING:\n    import lightning_same.two_pass", {"two_pass"}),
        ("import torch, math", set()),
    ],
)
def test_the_reader_sees(source: str, expected: set[str]) -> None:
    assert imported_files(source) == expected


def test_the_reader_tells_libraries_from_the_standard_library() -> None:
    source = "import math, torch.nn as nn\nfrom lightning.pytorch import Trainer\nimport lightning_same.rules"
    assert imported_libraries(source) == {"torch", "lightning"}


WITHOUT_EXTRAS = """
import importlib.metadata
import sys

extras = {"jsonargparse": "jsonargparse", "sklearn": "scikit-learn", "torchvision": "torchvision"}
installed = importlib.metadata.distribution

def distribution(name):
    if name in extras.values():
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)

importlib.metadata.distribution = distribution
sys.modules.update(dict.fromkeys(extras))  # None: importing it raises ModuleNotFoundError

import lightning_same

for name in lightning_same.__all__:
    getattr(lightning_same, name)
above = tuple(f"lightning_same.{name}" for name in ("cli", "experiments", "sharpness_command"))
heavy = [name for name in sys.modules if name.startswith(above)]
assert not heavy, heavy
"""


def test_the_public_names_need_no_extra() -> None:
    """Lightning and torchmetrics look for optional packages by themselves, so both ways to find one are closed."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
