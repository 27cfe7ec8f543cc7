"""Files that are either there as a whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file by way of another one that is renamed when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(*directories: Path) -> None:
    """Remove what a process that was killed has left of its files in these directories."""
    for directory in directories:
        for path in directory.glob(".*.part"):
            path.unlink(missing_ok=True)
