"""The long tests of the GPUs: where they are, running them, and what they have found.

They are tests of the repository, in ``tests/gpu``, marked ``gpu`` or ``multi_gpu``. The wheel has none.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import torch

import lightning_same
from lightning_same.cli.doctor.page import FirstHour, Result
from lightning_same.cli.errors import UserError

TESTS = Path("tests") / "gpu"
"""In the repository."""


def find() -> Path:
    """The root of the repository: the package's own, or the folder in which the command was given.

    Raises:
        UserError: if neither has the tests, or pytest is not installed.
    """
    package = lightning_same.__file__
    assert package is not None
    for root in (Path(package).parents[1], Path.cwd()):
        if (root / TESTS / "conftest.py").is_file():
            break
    else:
        raise UserError(
            f"--full runs the tests in {TESTS.as_posix()} of the repository, which an installed wheel has not. Give the"
            ' command in a checkout of the repository, after `pip install -e ".[test]"`.'
        )
    if importlib.util.find_spec("pytest") is None:
        raise UserError('--full needs pytest. Install it by `pip install -e ".[test]"` in the checkout.')
    return root


def run(root: Path) -> FirstHour:
    """Run the tests, whose output is shown as they run. Without a GPU they are listed, and none runs."""
    has_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(TESTS), "-m", "gpu or multi_gpu", "--numprocesses=0"]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1", "--timeout=900"]
        command += ["-v"] if has_gpu else ["-q", "-r", "fE"]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
        began = time.monotonic()
        ended = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": path}, check=False)
        seconds = time.monotonic() - began
        if not report.is_file():
            raise UserError(f"the tests could not be started: pytest ended with exit code {ended.returncode}.")
        results = read(report)
    gpus = torch.cuda.device_count()
    note = ""
    if not has_gpu:
        note = f"torch sees no GPU, so that none of these {len(results)} tests was run."
    elif gpus < 2:
        note = "There is one GPU: the tests of several were skipped."
    return FirstHour(results, seconds, note)


def read(report: Path) -> list[Result]:
    """The results in pytest's file in JUnit's format; what a test has recorded as a property is its detail."""
    results = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
        seconds = float(case.get("time", 0))
        figures = [f"{found.get('name')} {found.get('value')}" for found in case.iter("property")]
        outcome, detail = "passed", ", ".join(figures)
        for kind, called in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            for element in case.findall(kind):
                why = element.get("message") or element.text or ""
                outcome, detail = called, "; ".join(filter(None, [" ".join(why.split())[:300], detail]))
        results.append(Result(name, outcome, seconds, detail))
    return results
