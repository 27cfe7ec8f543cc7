"""One run: an ordinary fit in its own directory, finished if and only if its marker is there."""

import copy
import errno
import functools
import json
import platform
import shutil
import subprocess
import time
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from typing_extensions import override

from lightning_same.cli.errors import one_line
from lightning_same.cli.explanations import explained
from lightning_same.cli.fit import SAMCLI
from lightning_same.experiments.study.environment import versions
from lightning_same.experiments.study.errors import Kind, StudyError
from lightning_same.experiments.study.identity import checksum
from lightning_same.experiments.study.outcome import check, finished, state
from lightning_same.experiments.study.plan import MARKER, METRICS, OWN, Config, Run, set_option
from lightning_same.experiments.study.reading import dump_yaml
from lightning_same.experiments.study.writing import sync, write_atomically


class BusyError(StudyError):
    """Another process is at the run."""


PATIENCE = 30.0
"""Seconds to wait for a run that another process is at: a worker may outlive its killed parent by a moment."""

ASKED = "fit.yaml"
"""What a run's fit is given, in its directory."""

CHECKPOINTS = "checkpoints"
"""Where `ModelCheckpoint` writes in a run's directory unless it is told where."""


def fit_config(run: Run, directory: Path) -> Config:
    """The configuration of a run with what the study adds: where to write, and nothing on the screen."""
    config: Config = copy.deepcopy(run.config)
    place = str(directory / run.name)
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": place, "name": "", "version": ""}}
    # No test after the fit: both the last and the best weights are tested below.
    for key, value in zip(OWN, (logger, place, False, False, False), strict=True):
        try:
            set_option(config, key, value)
        except ValueError as error:
            raise StudyError(str(error)) from error
    return config


def perform(run: Run, directory: Path, tell: Callable[[int], None] = lambda epoch: None) -> None:
    """Train and test one run. What an earlier attempt has left is removed first.

    Args:
        run: the run.
        directory: the directory of all runs.
        tell: called with the number of epochs that are finished.

    Raises:
        StudyError: if another process is at this run, or its configuration is refused.
    """
    place = directory / run.name
    directory.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock_of(run, directory)).acquire(timeout=PATIENCE)
    except Timeout:
        raise BusyError(f"Run {run.name!r} is being trained by another process.") from None
    with held:
        if finished(run, directory):
            return
        make_room(run, directory)
        place.mkdir()
        (place / ASKED).write_text(dump_yaml(fit_config(run, directory)), encoding="utf-8")
        watch = Watch(tell)
        cli = _fitted(run, place, watch)
        outcome = _outcome(run, cli, watch)
        write_atomically(place / MARKER, json.dumps(outcome | {"check": check(outcome)}, indent=1))


def lock_of(run: Run, directory: Path) -> Path:
    """The file that whoever is at a run holds locked."""
    return directory / f".{run.name}.lock"


def follow(run: Run, directory: Path) -> None:
    """Be a further process of a run's Trainer: fit and test with the one that performs it, and write nothing."""
    cli = _fitted(run, directory / run.name, Watch(lambda epoch: None))
    _tests(cli)


def _fitted(run: Run, place: Path, watch: "Watch") -> SAMCLI:
    refuse: dict[str, Any] = {"exit_on_error": False}
    try:
        return SAMCLI(
            args=["fit", "--config", str(place / ASKED)],
            trainer_defaults={"callbacks": [watch]},
            parser_kwargs=refuse | {"fit": refuse},
        )
    except ArgumentError as error:
        raise StudyError(f"Run {run.name!r}: {one_line(explained(error.message))}") from error


def make_room(run: Run, directory: Path) -> None:
    """Remove what an earlier attempt at a run has left; set it aside if it holds what no attempt leaves."""
    place = directory / run.name
    if not (place.exists() or place.is_symlink()):
        return
    if not place.is_symlink() and place.is_dir() and state(run, directory).kind != "other":
        strange = [path for path in place.iterdir() if not _left_by_a_run(path)]
        if not strange:
            shutil.rmtree(place)
            return
    names = (directory / f"{run.name}.aside-{number}" for number in range(1, 10**6))
    place.rename(next(name for name in names if not name.exists() and not name.is_symlink()))


def _left_by_a_run(path: Path) -> bool:
    if path.name == CHECKPOINTS and path.is_dir() and not path.is_symlink():
        return all(file.suffix == ".ckpt" for file in path.iterdir())
    known = path.name in (ASKED, "config.yaml", "hparams.yaml", METRICS, MARKER)
    part = path.name.startswith(".") and path.suffix == ".part"
    return (known or part) and not path.is_dir()


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
    trainer, data = cli.trainer, cli.datamodule
    place = Path(trainer.default_root_dir)
    if not (place / METRICS).exists():
        raise StudyError("The fit has logged no metric, so nothing can be compared. Let the module call `self.log`.")
    tests = _tests(cli)
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    epoch = None
    if best:
        epoch = int(torch.load(best, map_location="cpu", weights_only=False)["epoch"])
    settle_checkpoints(trainer, place)
    for path in place.iterdir():
        sync(path)
    sync(place)
    steady = sorted(watch.seconds[1:] or watch.seconds)  # the first epoch warms up
    return {
        "run": run.name,
        "digest": run.digest,
        "test": tests,
        "best_epoch": epoch,
        "best_score": None if score is None else float(score),
        "noise_rate": getattr(data, "realised_noise_rate", None),
        "seconds_per_epoch": steady[len(steady) // 2] if steady else None,
        "device": _device(trainer.strategy.root_device),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "versions": versions(),
        "files": {METRICS: checksum((place / METRICS).read_bytes())},
    }


def _tests(cli: SAMCLI) -> dict[str, dict[str, float]]:
    """What the last and the best weights reach on the test split."""
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if trainer.interrupted:
        raise StudyError("The fit was interrupted.")
    trainer.loggers = []  # `METRICS` holds the fit alone
    tests: dict[str, dict[str, float]] = {}
    if data is not None and hasattr(model, "test_step"):
        # The last weights first: testing a checkpoint file puts its weights into the model.
        tests["last"] = dict(trainer.test(model, datamodule=data, verbose=False)[0])
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            tests["best"] = dict(trainer.test(model, datamodule=data, ckpt_path=best, verbose=False)[0])
    return tests


def settle_checkpoints(trainer: pl.Trainer, place: Path) -> None:
    """Remove the checkpoint files that were there for the test, and sync those that the user keeps elsewhere."""
    folder = (place / CHECKPOINTS).resolve()
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    for callback in callbacks:
        names = {callback.best_model_path, callback.last_model_path, callback.kth_best_model_path}
        for path in (Path(name) for name in names | set(callback.best_k_models) if name):
            if path.resolve().parent == folder:
                path.unlink(missing_ok=True)
            elif path.is_file():
                sync(path)
                sync(path.parent)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _device(device: torch.device) -> str:
    """What decides on the last bits, beside the number of threads."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def _commit() -> str | None:
    """The commit of the working directory, where the user's own modules are, and whether it has changes."""
    try:
        head, changes = (
            subprocess.run(
                ["git", *words], capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no repository
    return head.strip() + (" with changes" if changes.strip() else "")


def why(error: BaseException, directory: Path) -> tuple[Kind, str]:
    """How a run has failed, and the reason in one line."""
    busy = isinstance(error, BusyError)
    kind: Kind = "full" if disk_is_full(error, directory) else "busy" if busy else "failed"
    return kind, f"{type(error).__name__}: {one_line(error, 300)}"


def disk_is_full(error: BaseException | None, directory: Path) -> bool:
    """Whether an error comes of a full disk. PyTorch's writer does not say so, hence the look at the disk itself."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    there = next(path for path in [directory, *directory.absolute().parents] if path.exists())
    usage = shutil.disk_usage(there)
    return usage.total > 0 and usage.free < 2**16  # /proc has neither
