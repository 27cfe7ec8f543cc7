"""The command ``lightning-same study``."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from rich.console import Console

from lightning_same.experiments.study.check import check_names, check_room, check_runs
from lightning_same.experiments.study.plan import Run, Study, StudyError
from lightning_same.experiments.study.progress import StudyProgress
from lightning_same.experiments.study.report import write_report
from lightning_same.experiments.study.run import disk_is_full, finished, perform
from lightning_same.experiments.study.workers import run_all
from lightning_same.experiments.study.writing import remove_parts, write_atomically

PLAN = "study.json"
RUNS = "runs"


def main(args: Sequence[str]) -> None:
    """Run a study, or report on one.

    Args:
        args: what follows ``lightning-same study``.

    Raises:
        SystemExit: 2 for bad input, 1 if a run failed, 130 if interrupted; the message is on the error stream.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    options = _options(args)
    directory: Path | None = None
    try:
        if options.command == "report":
            directory = Path(options.directory)
            _report(Study.load(directory / PLAN), directory, console)
            return
        study = Study.read(Path(options.config))
        directory = Path(options.results or Path("runs") / study.name)
        _study(study, directory, options, console)
    except StudyError as error:
        console.print(f"lightning-same study: {error}", style="red", markup=False)
        sys.exit(2)
    except OSError as error:
        if directory is None or not disk_is_full(error, directory):
            raise
        console.print(f"lightning-same study: {_full(directory)}", style="red", markup=False)
        sys.exit(2)


def _options(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lightning-same study", description="Train methods x seeds x swept options, and report on them."
    )
    parser.add_argument("command", nargs="?", choices=["report"], help="report DIR: the report of what is finished.")
    parser.add_argument("directory", nargs="?", help="The results directory that `report` reads.")
    parser.add_argument("-c", "--config", help="The study's YAML file; docs/study.md describes it.")
    parser.add_argument("--results", metavar="DIR", help="Where the results go; by default runs/NAME.")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="Runs at a time; 1 by default.")
    parser.add_argument("--run", metavar="NAME", help="Only this run, in this process, and no report.")
    parser.add_argument("--dry-run", action="store_true", help="List the runs and which of them are finished.")
    parser.add_argument("--print-commands", action="store_true", help="Print one command per unfinished run.")
    options = parser.parse_args(list(args))
    if (options.command is None) != (options.directory is None):
        parser.error("`report` needs the results directory: lightning-same study report DIR")
    if options.command is None and options.config is None:
        parser.error("give the study: --config configs/studies/digits.yaml, or `report DIR`")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def _study(study: Study, directory: Path, options: argparse.Namespace, console: Console) -> None:
    runs = directory / RUNS
    if options.run is not None:
        check_names([options.run], [run.name for run in study.runs])
    if (directory / PLAN).exists():
        why = study.extends(Study.load(directory / PLAN))
        if why:
            raise StudyError(f"{directory} holds the results of another study: {why}. Give another --results.")
    elif directory.exists() and any(path.name[0] != "." for path in directory.iterdir()):
        raise StudyError(f"{directory} is not empty and holds no study. Give another --results.")
    if options.dry_run:
        _list(study, runs)
        return
    if options.run is None:
        check_runs(study)
    directory.mkdir(parents=True, exist_ok=True)
    check_room(directory)
    write_atomically(directory / PLAN, study.dump())
    if options.print_commands:
        _print_commands(study, directory, options)
    elif options.run is not None:
        import torch

        torch.set_num_threads(study.threads)
        perform(next(run for run in study.runs if run.name == options.run), runs)
    else:
        _run(study, directory, options.jobs, console)


def _run(study: Study, directory: Path, jobs: int, console: Console) -> None:
    try:
        held = FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout:
        raise StudyError(f"Another command is running the study in {directory}.") from None
    failed: dict[str, str] = {}
    with held:
        runs = directory / RUNS
        remove_parts(directory, directory / "tables", directory / "figures")
        # Seed by seed, so that a report on a part of the runs has all methods.
        left = sorted(_left(study, directory), key=lambda run: run.seed)
        for name in "SIGTERM", "SIGHUP":
            if hasattr(signal, name):  # not on Windows
                signal.signal(getattr(signal, name), _interrupt)
        try:
            with (
                StudyProgress(study.runs, left, console) as progress,
                closing(run_all(left, runs, jobs, study.threads)) as events,
            ):
                for event in events:
                    progress.show(event)
                    if event.kind == "failed":
                        failed[event.run.name] = event.value
                    if event.kind == "full":
                        raise StudyError(_full(directory))
        except KeyboardInterrupt:
            _report(study, directory, console)
            console.print("Interrupted. The same command goes on with the runs that are left.")
            sys.exit(130)
        _report(study, directory, console)
    if failed:
        console.print(f"{len(failed)} of {len(study.runs)} runs failed; the same command tries them again:")
        for name, why in failed.items():
            console.print(f"  {name}: {why}", markup=False)
        sys.exit(1)


def _report(study: Study, directory: Path, console: Console) -> None:
    done = [run for run in study.runs if finished(run, directory / RUNS)]
    if not done:
        console.print(f"No run in {directory} is finished yet, so there is nothing to report.")
        return
    page = write_report(study, done, directory)
    console.print(f"{len(done)} of {len(study.runs)} runs are finished. Report: {page}", markup=False)


def _list(study: Study, runs: Path) -> None:
    for run in study.runs:
        print(f"{'done' if finished(run, runs) else 'left'}  {run.name}")  # noqa: T201
    print(f"{len(study.runs)} runs")  # noqa: T201


def _print_commands(study: Study, directory: Path, options: argparse.Namespace) -> None:
    for run in _left(study, directory):
        words = ["lightning-same", "study", "--config", options.config, "--results", str(directory), "--run", run.name]
        print(shlex.join(words))  # noqa: T201


def _left(study: Study, directory: Path) -> list[Run]:
    return [run for run in study.runs if not finished(run, directory / RUNS)]


def _full(directory: Path) -> str:
    return (
        f"No space is left on the disk that holds {directory}. The runs that are finished are kept: free some space and"
        " give the same command again."
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
