"""``python -m lightning_suite CHECKOUT``: see the package's docstring."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl

from lightning_suite.fits import KINDS

TIMEOUT = 300
"""Seconds for a test; ``--timeout`` takes another number."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lightning_suite", description="Lightning's own tests.")
    parser.add_argument("checkout", type=Path, help="of Lightning's repository, at the installed version")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all, one after the other")
    parser.add_argument("--outcomes", type=Path, help="file of what was found; default: lightning_suite.jsonl")
    parser.add_argument("--tests", default="", help="a folder or file in tests/tests_pytorch; default: all")
    options, for_pytest = parser.parse_known_args()
    checkout = options.checkout.resolve()
    tests = checkout / "tests" / "tests_pytorch"
    if not tests.is_dir():
        parser.error(f"{options.checkout} is no checkout of Lightning's repository: it has no tests/tests_pytorch")
    version = (checkout / "src" / "version.info").read_text().strip()
    print(f"tests of Lightning {version} on lightning {pl.__version__}", flush=True)
    if _minor(version) != _minor(pl.__version__):
        parser.error("take the tests of the version that is installed")
    # Of the tests, and of this plugin in the processes that they start.
    path = os.pathsep.join([str(checkout / "tests"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    outcomes = (options.outcomes or Path("lightning_suite.jsonl")).resolve()
    status = 0
    for kind in options.kind or KINDS:
        command = [sys.executable, "-m", "pytest", "-p", "lightning_suite.plugin", "-p", "no:cacheprovider"]
        command += ["-c", str(checkout / "pyproject.toml"), f"--rootdir={checkout}", "-o", "addopts=", "-q"]
        command += ["--continue-on-collection-errors", f"--kind={kind}", f"--outcomes={outcomes}"]
        # For each run of a test: also for the one in plain Lightning, where the first has hung.
        command += [f"--timeout={TIMEOUT}", "-o", "timeout_func_only=true", *for_pytest]
        done = subprocess.run(
            [*command, str(tests / options.tests)], cwd=checkout, env={**os.environ, "PYTHONPATH": path}
        )
        status = status or done.returncode
    return status


def _minor(version: str) -> list[str]:
    return re.findall(r"\d+", version)[:2]


if __name__ == "__main__":
    sys.exit(main())
