"""What ``lightning-same study`` does."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from lightning_same.cli.errors import INTERRUPTED, one_line, say, told
from lightning_same.experiments.study.check import check_directory, check_names, check_room, check_runs
from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.executors.events import Executor
from lightning_same.experiments.study.executors.processes import Processes
from lightning_same.experiments.study.interrupts import Interrupts
from lightning_same.experiments.study.options import COMMAND
from lightning_same.experiments.study.outcome import finished, state
from lightning_same.experiments.study.own_process import train
from lightning_same.experiments.study.plan import PLAN, RUNS, Run, Study
from lightning_same.experiments.study.progress import StudyProgress
from lightning_same.experiments.study.report import write_report
from lightning_same.experiments.study.run import disk_is_full
from lightning_same.experiments.study.writing import remove_parts, write_atomically


def execute(options: argparse.Namespace) -> None:
    """Run a study, or report on one.

    Args:
        options: of `options.parsed`.

    Raises:
        SystemExit: 2 for bad input, 1 if a run failed, 130 if interrupted, 70 for an error that nobody foresaw; the
            message is one line on the error stream.
    """
    with told(COMMAND):
        if options.command == "report":
            directory = Path(options.directory)
            _report(Study.load(directory / PLAN), directory)
            return
        study = Study.read(Path(options.config))
        directory = Path(options.results or Path("runs") / study.folder)
        try:
            _study(study, directory, options)
        except OSError as error:
            if not disk_is_full(error, directory):
                raise
            raise StudyError(_full(directory)) from error


def _executor(options: argparse.Namespace) -> Executor:
    if options.ray is None:
        return Processes(options.jobs or 1)
    from lightning_same.experiments.study.executors.ray_cluster import RayCluster

    return RayCluster(
        options.ray,
        cpus=options.cpus_per_run,
        gpus=options.gpus_per_run,
        max_concurrent=options.max_concurrent,
        retries=2 if options.retries is None else options.retries,
    )


def _study(study: Study, directory: Path, options: argparse.Namespace) -> None:
    runs = directory / RUNS
    if options.run is not None:
        check_names([options.run], [run.name for run in study.runs])
    for line in check_directory(study, directory):
        say(f"{COMMAND}: {line}")
    if options.run is None:
        check_runs(study)
    executor = _executor(options)
    if options.dry_run:
        left = _left(study, directory)
        if options.ray is not None and left:
            with executor:
                _check(executor, left, study, directory)
        _list(study, {run.name for run in left})
        return
    directory.mkdir(parents=True, exist_ok=True)
    check_room(directory)
    _keep(study, directory)
    if options.print_commands:
        _print_commands(study, directory, options)
    elif options.run is not None:
        train(next(run for run in study.runs if run.name == options.run), runs, study.threads)
    else:
        _run(study, directory, executor)


def _check(executor: Executor, left: Sequence[Run], study: Study, directory: Path) -> None:
    for line in executor.check(left, directory / RUNS, study.threads):
        say(f"{COMMAND}: {line}")


def _run(study: Study, directory: Path, executor: Executor) -> None:
    try:
        held = FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout:
        raise StudyError(f"Another command is running the study in {directory}.") from None
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(held)
        remove_parts(directory, directory / "tables", directory / "figures", directory / RUNS)
        # Seed by seed, so that a report on a part of the runs has all methods.
        left = sorted(_left(study, directory), key=lambda run: run.seed)
        if left:
            stack.enter_context(executor)
            _check(executor, left, study, directory)
        # After the executor, which may set handlers of its own.
        interrupts = stack.enter_context(Interrupts(executor.end))
        if left:
            failed = _perform(study, left, directory, executor, lambda: interrupts.stopped)
        _keep(study, directory)  # if it was removed meanwhile
        if interrupts.stopped:
            say("Stopped. The report on what is finished is being written; Ctrl-C again ends without it.")
        _report(study, directory)
        if interrupts.stopped:
            say("Interrupted. The same command goes on with the runs that are left.")
            sys.exit(INTERRUPTED)
    if failed:
        say(f"{len(failed)} of {len(study.runs)} runs failed; the same command tries them again:")
        for name, why in failed.items():
            say(f"  {name}: {one_line(why)}")
        sys.exit(1)


def _perform(
    study: Study, left: Sequence[Run], directory: Path, executor: Executor, stopped: Callable[[], bool]
) -> dict[str, str]:
    """Perform runs and show how far they are; the names of those that fail, and why."""
    failed: dict[str, str] = {}
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with (
        StudyProgress(study.runs, left, console) as progress,
        contextlib.closing(executor.run_all(left, directory / RUNS, study.threads, stopped)) as events,
    ):
        for event in events:
            progress.show(event)
            if event.kind == "failed":
                failed[event.run.name] = event.value
            if event.kind == "full":
                raise StudyError(_full(directory))
    return failed


def _keep(study: Study, directory: Path) -> None:
    """Write the plan, unless it is there: what is finished is of use with it only."""
    content = study.dump()
    plan = directory / PLAN
    if not plan.is_file() or plan.read_bytes() != content.encode():
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(plan, content)


def _report(study: Study, directory: Path) -> None:
    done = []
    for run in study.runs:
        found = state(run, directory / RUNS)
        if found.kind == "done":
            done.append(run)
        elif found.why:
            say(f"Run {run.name} is not in the report: {found.why}. The study's command trains it anew.")
    if not done:
        say(f"No run in {directory} is finished yet, so there is nothing to report.")
        return
    page = write_report(study, done, directory)
    say(f"{len(done)} of {len(study.runs)} runs are finished. Report: {page}")


def _list(study: Study, left: Container[str]) -> None:
    for run in study.runs:
        _print(f"{'left' if run.name in left else 'done'}  {run.name}")
    _print(f"{len(study.runs)} runs")


def _print_commands(study: Study, directory: Path, options: argparse.Namespace) -> None:
    for run in _left(study, directory):
        words = ["lightning-same", "study", "--config", options.config, "--results", str(directory), "--run", run.name]
        _print(shlex.join(words))


def _print(line: str) -> None:
    """Write a line to the output, also with the name of a file that is no text."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(os.fsencode(line).decode(encoding, "replace") + "\n")


def _left(study: Study, directory: Path) -> list[Run]:
    return [run for run in study.runs if not finished(run, directory / RUNS)]


def _full(directory: Path) -> str:
    return (
        f"No space is left on the disk that holds {directory}. The runs that are finished are kept: free some space and"
        " give the same command again."
    )
