"""The options of ``lightning-same study``. Nothing is loaded here that would keep ``--help`` waiting."""

import argparse
from collections.abc import Sequence

from lightning_same.cli.plot import Parser

COMMAND = "lightning-same study"

MAX_JOBS = 256


def parsed(args: Sequence[str]) -> argparse.Namespace:
    """The options, checked by themselves.

    Args:
        args: what follows ``lightning-same study``.

    Raises:
        SystemExit: 2 for options that make no sense together.
    """
    parser = Parser(prog=COMMAND, description="Train methods x seeds x swept options, and report on them.")
    parser.add_argument("command", nargs="?", choices=["report"], help="report DIR: the report of what is finished.")
    parser.add_argument("directory", nargs="?", help="The results directory that `report` reads.")
    parser.add_argument("-c", "--config", help="The study's YAML file; docs/study.md describes it.")
    parser.add_argument("--results", metavar="DIR", help="Where the results go; by default runs/NAME.")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="Runs at a time; 1 by default.")
    parser.add_argument("--run", metavar="NAME", help="Only this run, in this process, and no report.")
    parser.add_argument("--dry-run", action="store_true", help="Check everything, and list the runs that are left.")
    parser.add_argument("--print-commands", action="store_true", help="Print one command per unfinished run.")
    options = parser.parse_args(list(args))
    if (options.command is None) != (options.directory is None):
        parser.error("`report` needs the results directory: lightning-same study report DIR")
    if options.command is None and options.config is None:
        parser.error("give the study: --config configs/studies/digits.yaml, or `report DIR`")
    if not 1 <= options.jobs <= MAX_JOBS:
        bound = "at least 1" if options.jobs < 1 else f"at most {MAX_JOBS}"
        parser.error(f"--jobs must be {bound}, got {options.jobs}")
    return options
