"""Runs whose Trainer starts further processes, as DDP does: such a run has a process of its own.

Lightning starts the command of this process once more for each further device. That command must be the run's, and not
the study's or that of a worker, which performs many runs.

``python -m lightning_same.experiments.study.own_process FOLDER`` performs the run that a file in the folder holds.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from lightning_same.experiments.study.errors import Kind
from lightning_same.experiments.study.plan import Config, Run

RUN = "run.pickle"
TOLD = "told.jsonl"
LOOK = 0.1


class RunEnded(Exception):
    """How a run in a process of its own has ended, other than well.

    Attributes:
        kind: ``failed``, ``full`` or ``busy``.
        why: in one line.
    """

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


def train(run: Run, directory: Path, threads: int, tell: Callable[[int], None] = lambda epoch: None) -> None:
    """Perform a run: in this process or, if its Trainer starts others, in one of its own.

    Args:
        run: the run.
        directory: the directory of all runs.
        threads: PyTorch threads.
        tell: called with the number of epochs that are finished.

    Raises:
        RunEnded: if it fails in a process of its own.
        Exception: whatever it raises in this one.
    """
    if devices_of(run.config) > 1:
        _train_apart(run, directory, threads, tell)
        return
    import torch

    from lightning_same.experiments.study.run import perform

    torch.set_num_threads(threads)
    perform(run, directory, tell)


def devices_of(config: Config) -> int:
    """How many devices a run's Trainer takes on this machine."""
    planned = planned_devices(config)
    if planned is not None:
        return planned
    import torch

    return max(1, torch.cuda.device_count())


def planned_devices(config: Config) -> int | None:
    """How many devices a run's Trainer takes; None for all GPUs that there are."""
    devices = _trainer(config).get("devices", "auto")
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        numbers = [number for number in devices.split(",") if number.strip()]
        return len(numbers) if "," in devices else int(devices) if devices.isdecimal() else 1
    if isinstance(devices, list):
        return len(devices)
    if type(devices) is int and devices >= 0:
        return devices
    return None if accelerator_of(config) in ("auto", "gpu", "cuda") else 1


def accelerator_of(config: Config) -> str:
    """The accelerator of a run's Trainer."""
    return str(_trainer(config).get("accelerator", "auto"))


def _trainer(config: Config) -> Mapping[str, Any]:
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, Mapping) else {}


def _train_apart(run: Run, directory: Path, threads: int, tell: Callable[[int], None]) -> None:
    with TemporaryDirectory(prefix="lightning-same-") as name:
        folder = Path(name)
        (folder / RUN).write_bytes(pickle.dumps((run, directory.absolute(), threads)))
        (folder / TOLD).touch()
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, name],
            stdin=subprocess.PIPE,  # its end tells it that this process is gone
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=os.name != "nt",
        )
        assert process.stdin is not None
        ended: tuple[Kind, str] | None = None
        try:
            with (folder / TOLD).open(encoding="utf-8") as told:
                alive = True
                while alive:
                    alive = process.poll() is None
                    for kind, value in _lines(told):
                        if kind == "epoch":
                            tell(value)
                        else:
                            ended = kind, value
                    time.sleep(LOOK if alive else 0)
        finally:
            process.stdin.close()
            _end_group(process.pid)
            process.wait()
        if ended is not None:
            raise RunEnded(*ended)
        if process.returncode != 0:
            raise RunEnded("failed", f"its process died with exit code {process.returncode}")


def _lines(told: IO[str]) -> Iterator[tuple[Any, Any]]:
    """What has been written since the last look, line by line; half a line waits."""
    while True:
        place = told.tell()
        line = told.readline()
        if not line.endswith("\n"):
            told.seek(place)
            return
        kind, value = json.loads(line)
        yield kind, value


def _end_group(pid: int) -> None:
    if hasattr(os, "killpg"):
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # all of it has ended


def _end_with_the_parent() -> None:
    """End this process and those that Lightning has started for it when the one that waits for it is gone."""

    def watch() -> None:
        os.read(0, 1)  # not by sys.stdin, whose lock would be held when the interpreter ends
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(name: str) -> int:
    """Perform the run that a folder holds, or be one of its further processes; the exit code."""
    _end_with_the_parent()
    folder = Path(name)
    run, directory, threads = pickle.loads((folder / RUN).read_bytes())
    import torch

    from lightning_same.experiments.study.run import follow, perform, why

    torch.set_num_threads(threads)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        follow(run, directory)
        return 0
    with (folder / TOLD).open("a", encoding="utf-8") as file:

        def tell(kind: str, value: Any) -> None:
            file.write(json.dumps([kind, value]) + "\n")
            file.flush()

        try:
            perform(run, directory, lambda epoch: tell("epoch", epoch))
        except BaseException as error:  # also SystemExit, by which a parser refuses
            traceback.print_exc()
            tell(*why(error, directory))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
