"""The command ``lightning-same``, and other programs, in processes that need not import everything first."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from support.fresh import fresh_processes


class Done(NamedTuple):
    """What has come of a command.

    Attributes:
        code: its exit status.
        out: what it has written to standard output.
        err: what it has written to standard error.
    """

    code: int | None
    out: str
    err: str


def command(*words: str, folder: Path) -> Done:
    """Run ``lightning-same WORDS...`` as from a shell.

    Args:
        *words: its arguments.
        folder: the working directory.
    """
    return _done(_command, words, folder)


def script(file: Path, *words: str, folder: Path) -> Done:
    """Run ``python FILE WORDS...`` as from a shell.

    Args:
        file: the script.
        *words: its arguments.
        folder: the working directory.
    """
    return _done(_script, (str(file), *words), folder)


def tests(*words: str, folder: Path) -> Done:
    """Run ``python -m pytest WORDS...`` as from a shell.

    Args:
        *words: its arguments.
        folder: the working directory.
    """
    return _done(_tests, words, folder)


def _done(program: Callable[[tuple[str, ...]], Any], words: tuple[str, ...], folder: Path) -> Done:
    process = fresh_processes().Process(target=_run, args=(program, words, folder))
    process.start()
    process.join()
    texts = []
    for name in ("out", "err"):
        file = folder / f".{name}-{process.pid}"
        texts.append(file.read_text())
        file.unlink()
    return Done(process.exitcode, *texts)


def _run(program: Callable[[tuple[str, ...]], Any], words: tuple[str, ...], folder: Path) -> None:
    os.chdir(folder)
    for name, stream in (("out", 1), ("err", 2)):
        file = os.open(f".{name}-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, stream)
        os.close(file)
    program(words)


def _command(words: tuple[str, ...]) -> None:
    from lightning_same.__main__ import main

    # As `python -m lightning_same` would: the words and the modules of the working directory.
    sys.argv = ["lightning-same", *words]
    sys.path.insert(0, os.getcwd())
    main()


def _script(words: tuple[str, ...]) -> None:
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def _tests(words: tuple[str, ...]) -> None:
    import pytest

    sys.exit(pytest.main(list(words)))
