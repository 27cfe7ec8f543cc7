"""One run: an ordinary fit in its own directory, finished if and only if its marker is there."""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_same.cli.fit import SAMCLI
from lightning_same.experiments.study.plan import MARKER, Config, Run, StudyError, set_option
from lightning_same.experiments.study.writing import write_atomically

PATIENCE = 30.0
"""Seconds to wait for a run that another process is at: a worker may outlive its killed parent by a moment."""


def finished(run: Run, directory: Path) -> bool:
    """Whether the run is there, whole and with this configuration."""
    try:
        return bool(json.loads((directory / run.name / MARKER).read_text())["digest"] == run.digest)
    except FileNotFoundError:
        return False


def fit_config(run: Run, directory: Path) -> Config:
    """The configuration of a run with what the study adds: where to write, and nothing on the screen."""
    config: Config = json.loads(json.dumps(run.config))
    place = str(directory / run.name)
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": place, "name": "", "version": ""}}
    for key, value in {
        "trainer.logger": logger,
        "trainer.default_root_dir": place,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "test_after_fit": False,  # both the last and the best weights are tested below
    }.items():
        set_option(config, key, value)
    return config


def perform(run: Run, directory: Path, tell: Callable[[int], None] = lambda epoch: None) -> None:
    """Train and test one run. What an earlier attempt has left is removed first.

    Args:
        run: the run.
        directory: the directory of all runs.
        tell: called with the number of epochs that are finished.

    Raises:
        StudyError: if another process is at this run.
    """
    place = directory / run.name
    directory.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(directory / f".{run.name}.lock").acquire(timeout=PATIENCE)
    except Timeout:
        raise StudyError(f"Run {run.name!r} is being trained by another process.") from None
    with held:
        if finished(run, directory):
            return
        if place.exists():
            shutil.rmtree(place)
        place.mkdir()
        asked = place / "fit.yaml"
        asked.write_text(yaml.safe_dump(fit_config(run, directory), sort_keys=False))
        watch = Watch(tell)
        cli = SAMCLI(args=["fit", "--config", str(asked)], trainer_defaults={"callbacks": [watch]})
        write_atomically(place / MARKER, json.dumps(_outcome(run, cli, watch), indent=1))


class Watch(Callback):
    """Tells how far a run is, and takes the time of its epochs."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell
        self.seconds: list[float] = []
        self._start = 0.0

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:  # before validation, which takes as long for every method
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds.append(time.perf_counter() - self._start)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.tell(trainer.current_epoch + 1)


def _outcome(run: Run, cli: SAMCLI, watch: Watch) -> Config:
    """What is known when the fit is over: the tests of the last and of the best weights, and the times."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if trainer.interrupted:
        raise StudyError("The fit was interrupted.")
    trainer.loggers = []  # `METRICS` holds the fit alone
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    epoch = None
    tests: dict[str, dict[str, float]] = {}
    if data is not None and hasattr(model, "test_step"):
        # The last weights first: testing a checkpoint file puts its weights into the model.
        tests["last"] = dict(trainer.test(model, datamodule=data, verbose=False)[0])
        if best:
            tests["best"] = dict(trainer.test(model, datamodule=data, ckpt_path=best, verbose=False)[0])
    if best:
        epoch = int(torch.load(best, map_location="cpu", weights_only=False)["epoch"])
        place = Path(trainer.default_root_dir).resolve()
        if place in Path(best).resolve().parents:  # a checkpoint that the user keeps elsewhere stays
            shutil.rmtree(Path(best).parent)
    steady = sorted(watch.seconds[1:] or watch.seconds)  # the first epoch warms up
    return {
        "run": run.name,
        "digest": run.digest,
        "test": tests,
        "best_epoch": epoch,
        "best_score": None if score is None else float(score),
        "noise_rate": getattr(data, "realised_noise_rate", None),
        "seconds_per_epoch": steady[len(steady) // 2] if steady else None,
        "device": str(trainer.strategy.root_device),
        "versions": {name: version(name) for name in ("lightning-same", "lightning", "torch")},
    }


def disk_is_full(error: BaseException | None, directory: Path) -> bool:
    """Whether an error comes of a full disk. PyTorch's writer does not say so, hence the look at the disk itself."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    there = next(path for path in [directory, *directory.absolute().parents] if path.exists())
    return shutil.disk_usage(there).free < 2**16


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
