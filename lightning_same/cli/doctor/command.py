"""The command ``lightning-same doctor``."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lightning_same.cli.errors import UserError, told
from lightning_same.cli.parser import Parser

PAGE = "lightning-same-doctor.md"
"""The file that ``--full`` writes."""

DESCRIPTION = """Print the versions, the devices and what is supported here, and test in a few seconds whether two
passes work on each kind of device. With --full, run the long tests of all GPUs, which take about an hour, and write one
page of results to attach to an issue."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: instead of the command line's.

    Raises:
        SystemExit: 1 if a test has failed, 2 if the command cannot run here.
    """
    given = parser().parse_args(args)
    with told("lightning-same doctor"):
        # Before the tests: with --full they take an hour.
        if given.out and (given.out.is_dir() or not os.access(given.out.parent, os.W_OK)):
            raise UserError(f"--out: {given.out} cannot be written.", "Name a file in a folder that you may write to.")
        passed = _run(given.full, given.out or (Path(PAGE) if given.full else None))
    if not passed:
        sys.exit(1)


def parser() -> Parser:
    """Of the command's options."""
    made = Parser(prog="lightning-same doctor", description=DESCRIPTION)
    add = made.add_argument
    add("--full", action="store_true", help="run the long tests of the GPUs; needs a checkout of the repository")
    add("--out", type=Path, metavar="FILE", help=f"write the page there (with --full, default: {PAGE})")
    return made


def _run(full: bool, out: Path | None) -> bool:
    """Print everything, write the page, and tell whether all tests have passed."""
    # torch and Lightning take seconds to import, `--help` needs neither.
    from lightning_same.cli.doctor import first_hour, machine, page, self_test

    place = first_hour.find() if full else None
    sections = [page.table("Versions", machine.versions()), page.table("Devices", machine.devices())]
    sections.append(page.table("What is supported here", machine.supported()))
    for section in sections:
        _print(section)
    began = time.monotonic()
    results = self_test.run(report=lambda result: _print(page.line(result)))
    sections.append(page.results("Self-test", results, time.monotonic() - began))
    passed = all(result.passed for result in results)
    _print(f"Self-test: {page.summary(results)} in {time.monotonic() - began:.0f} s.\n")
    if place is not None:
        outcome = first_hour.run(place)
        sections.append(page.first_hour(outcome))
        passed = passed and not outcome.failed
        _print(page.first_hour(outcome))
    if out is not None:
        out.write_text("\n".join(["# lightning-same doctor\n", *sections]), encoding="utf-8")
        _print(f"Written: {out}\n")
    return passed


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()
