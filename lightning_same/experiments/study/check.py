"""Bad input, refused before the first run starts."""

import io
import json
import logging
import shutil
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml  # type: ignore[import-untyped]

from lightning_same.cli.fit import SAMCLI
from lightning_same.experiments.study.plan import Run, Study, StudyError
from lightning_same.experiments.study.run import fit_config

ROOM = 64 * 2**20
"""Bytes that must be free before a study begins."""


def check_runs(study: Study) -> None:
    """Build what each variant's configuration names, and fetch data that are missing.

    Args:
        study: the study; one seed stands for all.

    Raises:
        StudyError: names the method, what is wrong, and the choices.
    """
    fetched = set()
    for run in {run.variant: run for run in reversed(study.runs)}.values():
        cli = _built(run)
        if cli.datamodule is not None:
            data = json.dumps(run.config.get("data"), sort_keys=True)
            if data not in fetched:
                fetched.add(data)
                try:
                    cli.datamodule.prepare_data()
                except (OSError, RuntimeError, ValueError) as error:
                    raise StudyError(f"Method {run.method!r}: {error}") from error


def check_room(directory: Path) -> None:
    """Refuse a disk that is as good as full.

    Raises:
        StudyError: says how much is free.
    """
    free = shutil.disk_usage(directory).free
    if free < ROOM:
        raise StudyError(f"Only {free / 2**20:.1f} MiB are free on the disk that holds {directory}: free some first.")


def check_names(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a run that the study does not have.

    Raises:
        StudyError: names the runs that there are.
    """
    names = list(known)
    for name in wanted:
        if name not in names:
            raise StudyError(f"There is no run {name!r} in this study. Its runs: {', '.join(names)}.")


@contextmanager
def _silent() -> Iterator[None]:
    """What is built to be checked does not report on itself."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _built(run: Run) -> SAMCLI:
    with TemporaryDirectory() as empty:
        config = fit_config(run, Path(empty))
        config.get("trainer", {}).pop("callbacks", None)  # some want a logger's directory at once
        path = Path(empty) / "fit.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        said = io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()), _silent():
                return SAMCLI(args=["--config", str(path)], run=False, parser_kwargs={"exit_on_error": False})
        except SystemExit:
            raise StudyError(f"Method {run.method!r}: {said.getvalue().strip()}") from None
        except (ArgumentError, ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
            message = error.message if isinstance(error, ArgumentError) else str(error)
            raise StudyError(f"Method {run.method!r}: {message}") from error
