"""Callbacks that make a run of a study go wrong, and what the tests of the study share."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


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


def with_fault(name: str) -> dict[str, Any]:
    """The options of a method that trains with a fault."""
    return {"sam": None, "trainer.callbacks": [{"class_path": f"study_faults.{name}"}]}


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

    from lightning_same.experiments.study import main, workers
    from lightning_same.experiments.study.run import output_to

    workers._CONTEXT = multiprocessing.get_context("fork")
    with output_to(Path(log)):
        main(arguments)
