"""Runs that come from another machine: packed there, and on this one either whole or absent."""

import gzip
import io
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

from filelock import FileLock

from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.outcome import finished, state
from lightning_same.experiments.study.plan import Run
from lightning_same.experiments.study.reading import dump_yaml, read_yaml
from lightning_same.experiments.study.run import ASKED, lock_of, make_room
from lightning_same.experiments.study.writing import sync

LANDING = ".landing"
"""The folder, in that of all runs, in which runs are unpacked before they are renamed."""


def pack(run: Run, here: Path, there: Path) -> bytes:
    """A finished run as an archive.

    Args:
        run: the run.
        here: the directory of all runs on this machine, which its configurations name.
        there: that on the machine to which the archive goes, which they name afterwards.
    """
    place = here / run.name
    for name in ASKED, "config.yaml":
        if (place / name).is_file():
            _relocate(place / name, str(here), str(there))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        archive.add(place, arcname=run.name)
    return packed.getvalue()


def land(run: Run, packed: bytes, directory: Path) -> None:
    """Put a run that was packed elsewhere into its place, by renaming.

    Args:
        run: the run.
        packed: what `pack` has made of it.
        directory: the directory of all runs.

    Raises:
        StudyError: if it has not arrived as it was when it ended.
    """
    landing = directory / LANDING / f"{os.getpid()}"
    shutil.rmtree(landing, ignore_errors=True)
    landing.mkdir(parents=True)
    try:
        try:
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(landing, filter="data")
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise StudyError(f"it has not arrived whole: {error}") from error
        found = state(run, landing)
        if found.kind != "done":
            raise StudyError(f"it has not arrived as it was when it ended{found.why and f': {found.why}'}")
        for path in (landing / run.name).rglob("*"):
            sync(path)
        sync(landing / run.name)
        with FileLock(lock_of(run, directory)):
            if not finished(run, directory):
                make_room(run, directory)
                (landing / run.name).rename(directory / run.name)
                sync(directory)
    finally:
        shutil.rmtree(landing, ignore_errors=True)


def remove_landings(directory: Path) -> None:
    """Remove what a process that was killed has left of runs that were about to land."""
    shutil.rmtree(directory / LANDING, ignore_errors=True)


def _relocate(file: Path, here: str, there: str) -> None:
    """Let a configuration name another directory in the place of one; its comments at the head stay."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    head = "".join(line for line in lines[:10] if line.startswith("#"))
    file.write_text(head + dump_yaml(_moved(read_yaml(file).content, here, there)), encoding="utf-8")


def _moved(value: Any, here: str, there: str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, here, there) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, here, there) for item in value]
    return value.replace(here, there) if isinstance(value, str) else value
