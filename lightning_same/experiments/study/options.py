"""The options of ``lightning-same study``. Nothing is loaded here that would keep ``--help`` waiting."""

import argparse
import os
from collections.abc import Sequence

from lightning_same.cli.configs import found, missing
from lightning_same.cli.parser import Parser

COMMAND = "lightning-same study"

MAX_JOBS = 256


def parsed(args: Sequence[str]) -> argparse.Namespace:
    """The options, checked by themselves.

    Args:
        args: what follows ``lightning-same study``.

    Raises:
        SystemExit: 2 for options that make no sense together.
    """
    made = parser()
    options = made.parse_args(list(args))
    if (options.command is None) != (options.directory is None):
        made.error("`report` needs the results directory: lightning-same study report DIR")
    if options.command is None and options.config is None:
        made.error("give the study: --config digits, --config FILE.yaml or `report DIR`")
    if options.jobs is not None and not 1 <= options.jobs <= MAX_JOBS:
        bound = "at least 1" if options.jobs < 1 else f"at most {MAX_JOBS}"
        made.error(f"--jobs must be {bound}, got {options.jobs}")
    _check_ray(made, options)
    if options.config is not None:
        shipped = found(options.config, "study")
        if shipped is None and _is_nowhere(options.config):
            made.error(missing(options.config, "study"))
        options.config = str(shipped or options.config)
    return options


def parser() -> Parser:
    """Of the command's options."""
    made = Parser(prog=COMMAND, description="Train methods x seeds x swept options, and report on them.")
    add = made.add_argument
    add("command", nargs="?", choices=["report"], help="report DIR: the report of what is finished.")
    add("directory", nargs="?", help="The results directory that `report` reads.")
    add("-c", "--config", help="The study: a YAML file, or a name of `lightning-same configs`.")
    add("--results", metavar="DIR", help="Where the results go; by default runs/NAME.")
    add("--jobs", type=int, metavar="N", help="Runs at a time on this machine; 1 by default.")
    ray = made.add_argument_group("on a Ray cluster (docs/several_machines.md)")
    where = "HOST:PORT or auto, this machine's; without an address a Ray of its own."
    ray.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help=f"Runs as Ray tasks: {where}")
    ray.add_argument("--cpus-per-run", type=float, metavar="N", help="By default the study's threads for each device.")
    ray.add_argument("--gpus-per-run", type=float, metavar="N", help="May be a share of one; by default one a device.")
    ray.add_argument("--max-concurrent", type=int, metavar="N", help="Runs at a time; by default all with room.")
    ray.add_argument("--retries", type=int, metavar="N", help="For runs lost with process or node; 2 by default.")
    add("--run", metavar="NAME", help="Only this run, in this process, and no report.")
    add("--dry-run", action="store_true", help="Check everything, and list the runs that are left.")
    add("--print-commands", action="store_true", help="Print one command per unfinished run.")
    return made


def _is_nowhere(path: str) -> bool:
    """Whether there is nothing of that name. What is there and cannot be read, its reader tells."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _check_ray(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    given = {name: getattr(options, name.replace("-", "_")) for name in _RAY}
    for name, value in given.items():
        if value is None:
            continue
        low, whole = _RAY[name]
        if options.ray is None:
            parser.error(f"--{name} belongs to --ray")
        if not low <= value <= 10_000:
            parser.error(f"--{name} must be from {low} to 10000, got {value:g}")
        if not whole and value > 1 and value != int(value):
            parser.error(f"--{name} must be a share of 1 or a whole number, as Ray has it, got {value:g}")
    if options.ray is not None and (options.jobs is not None or options.run is not None or options.print_commands):
        parser.error("--ray stands for itself: without --jobs, --run and --print-commands")


_RAY = {"cpus-per-run": (0, False), "gpus-per-run": (0, False), "max-concurrent": (1, True), "retries": (0, True)}
"""Options of Ray: the least value, and whether it is a whole number by its type."""
