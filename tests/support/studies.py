"""Small studies, callbacks that make a run go wrong, and what a study leaves behind."""

import errno
import json
import os
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from typing_extensions import override

from support.speed import in_time


class Die(Callback):
    """Kills its own process, as the kernel does where memory is short."""

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(Callback):
    """Fails as a write to a full disk does."""

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Fail(Callback):
    """Fails with a message."""

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise RuntimeError("this run fails")


class Slow(Callback):
    """Takes some time in each epoch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        time.sleep(self.seconds)


class Weighted(Callback):
    """Takes a mapping with keys that are numbers."""

    def __init__(self, weights: dict[int, float]) -> None:
        assert all(isinstance(key, int) for key in weights)


class ForkAndDie(Callback):
    """Starts a process that outlives its own, which then ends as one does that has touched foreign memory."""

    def __init__(self, place: str) -> None:
        self.place = place

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        Path(self.place).write_text(str(child))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)


class CheckpointsHere(ModelCheckpoint):
    """Keeps its files in the directory of the run itself."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = trainer.default_root_dir
        super().setup(trainer, pl_module, stage)


class Notes(Callback):
    """Leaves a file beside those of the run."""

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (Path(trainer.default_root_dir) / "notes.txt").write_text("mine")


def with_fault(name: str) -> dict[str, Any]:
    """The options of a method that trains with a fault."""
    return {"sam": None, "trainer.callbacks": [{"class_path": f"{__name__}.{name}"}]}


def write_study(folder: Path, **changes: Any) -> str:
    """Write a study of four runs of a second each, changed as told, and return the path of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 3,
            "log_every_n_steps": 2,
            "callbacks": [
                {"class_path": "lightning_same.CheckpointFractionMonitor"},
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/accuracy", "mode": "max"}},
            ],
        },
        "model": {
            "class_path": "lightning_same.experiments.ImageClassifier",
            "init_args": {
                "num_classes": 10,
                "model": {
                    "class_path": "lightning_same.experiments.SmallCNN",
                    "init_args": {"num_classes": 10, "width": 2},
                },
            },
        },
        "data": {
            "class_path": "lightning_same.experiments.DigitsData",
            "init_args": {"fake": True, "batch_size": 20, "train_eval": True},
        },
    }
    study = {
        "name": "tiny",
        "description": "Random images.",
        "base": "base.yaml",
        "seeds": 2,
        "methods": {
            "SAM": {"sam": {"class_path": "SAM", "init_args": {"rho": 0.1}}},
            "SAME 1": {"sam": {"class_path": "SAME", "init_args": {"ckpt": 1, "rho": 0.1}}},
        },
        **changes,
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return str(folder / "study.yaml")


def begin(arguments: list[str], log: str) -> None:
    """The command in a process of its own, whose workers are forked: that process has trained nothing itself."""
    import multiprocessing

    from lightning_same.experiments.study import main
    from lightning_same.experiments.study.executors import processes
    from lightning_same.experiments.study.writing import output_to

    # A shell that starts the tests in the background lets them ignore Ctrl-C, and so all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processes._CONTEXT = multiprocessing.get_context("fork")
    with output_to(Path(log)):
        main(arguments)


MARKER = "done.json"


def markers(results: Path) -> dict[str, tuple[int, int]]:
    """The finished runs, with what tells whether a marker was written again."""
    return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in results.glob(f"runs/*/{MARKER}")}


def content(results: Path) -> dict[str, Any]:
    """Every file of the results that is no time, path or lock."""
    found: dict[str, Any] = {}
    for path in sorted(results.rglob("*")):
        name = str(path.relative_to(results))
        left_out = path.suffix in (".lock", ".log") or path.name in (
            ".lock",
            ".report.json",
            "times.csv",
            "config.yaml",
        )
        if path.is_dir() or left_out:
            continue
        text = path.read_text()
        if name.startswith("report"):
            text = re.split(r"## About this report|<h2 id=.about-this-report", text)[0]
        elif path.name == MARKER:
            outcome = json.loads(text)
            del outcome["seconds_per_epoch"], outcome["check"]
            text = json.dumps(outcome)
        found[name] = re.sub(r"/\S*/results\b", "RESULTS", text)
    return found


def said(results: Path) -> str:
    return Path(f"{results}.log").read_text()


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    while not condition():
        assert process.is_alive(), "the command ended early"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process is over, be it a zombie still."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    assert in_time(lambda _: condition() or time.sleep(0.02), seconds), "waited in vain"
