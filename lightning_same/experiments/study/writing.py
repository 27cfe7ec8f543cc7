"""Files that are either there as a whole or not at all."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from lightning_same.experiments.study.identity import checksum

WRITTEN = ".report.json"
"""What the last report has written, and the checksums of it: a report removes these files and no others."""

_busy = 0


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file by way of another one that is renamed when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read_regular(path: Path, most: int = 2**26) -> bytes:
    """Read a file, unless it is a pipe or a device, which may have no end, or larger than the study writes any.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: if there is none, or it cannot be read.
        ValueError: if it is none that the study has written.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{path.name} is no regular file")
    if info.st_size > most:
        raise ValueError(f"{path.name} has {info.st_size} bytes, which the study never writes")
    return path.read_bytes()


def sync(path: Path) -> None:
    """Wait until a file, or the names that a folder holds, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(*directories: Path) -> None:
    """Remove what a process that was killed has left of its files in these directories."""
    for directory in directories:
        for path in directory.glob(".*.part"):
            path.unlink(missing_ok=True)


def replace_files(directory: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files in the place of those that the last call has written. No other file is removed.

    Args:
        directory: where they go.
        files: their contents by their names, which may begin with that of a folder, as in ``tables/final.csv``.
    """
    contents = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
    with uninterrupted():
        for name, digest in _written(directory).items():
            path = directory / name
            with contextlib.suppress(OSError, ValueError):  # what cannot be read is not what was written
                if name not in contents and checksum(read_regular(path)) == digest:
                    path.unlink()
        sums = {name: checksum(content) for name, content in contents.items()}
        # Before them: what is on the list and not there does no harm.
        write_atomically(directory / WRITTEN, json.dumps(_written(directory) | sums, indent=1))
        for name, content in contents.items():
            (directory / name).parent.mkdir(exist_ok=True)
            write_atomically(directory / name, content)
        write_atomically(directory / WRITTEN, json.dumps(sums, indent=1))


def _written(directory: Path) -> dict[str, str]:
    try:
        content = json.loads(read_regular(directory / WRITTEN))
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = content.items() if isinstance(content, dict) else ()
    return {name: digest for name, digest in pairs if isinstance(digest, str) and _inside(name)}


def _inside(name: str) -> bool:
    """Whether a name leads into ``tables/`` or ``figures/`` and nowhere else."""
    parts = Path(name).parts
    return len(parts) == 2 and parts[0] in ("tables", "figures")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """While this lasts, `writing` is true, and a second Ctrl-C waits."""
    global _busy
    _busy += 1
    try:
        yield
    finally:
        _busy -= 1


def writing() -> bool:
    """Whether files are being written that belong together."""
    return _busy > 0


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Let everything that this process writes to its two streams go to a file, also what other languages write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(stream) for stream in (1, 2)]
    with path.open("w") as file:
        for stream in 1, 2:
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        for stream, old in zip((1, 2), kept, strict=True):
            os.dup2(old, stream)
            os.close(old)
