"""The command ``lightning-same``, in a process that need not import everything first."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

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
    process = fresh_processes().Process(target=_run, args=(words, folder))
    process.start()
    process.join()
    texts = []
    for name in ("out", "err"):
        file = folder / f".{name}-{process.pid}"
        texts.append(file.read_text())
        file.unlink()
    return Done(process.exitcode, *texts)


def _run(words: tuple[str, ...], folder: Path) -> None:
    from lightning_same.__main__ import main

    os.chdir(folder)
    for name, stream in (("out", 1), ("err", 2)):
        file = os.open(f".{name}-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, stream)
        os.close(file)
    # As `python -m lightning_same` would: the words and the modules of the working directory.
    sys.argv = ["lightning-same", *words]
    sys.path.insert(0, str(folder))
    main()
