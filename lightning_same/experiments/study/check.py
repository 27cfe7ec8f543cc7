"""Bad input, refused before the first run starts."""

import io
import json
import logging
import re
import shutil
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer

from lightning_same.cli.errors import did_you_mean, one_line, root
from lightning_same.cli.explanations import explained
from lightning_same.cli.fit import SAMCLI
from lightning_same.experiments.classifier import ImageClassifier
from lightning_same.experiments.data.noisy_images import NoisyImageData
from lightning_same.experiments.study.errors import StudyError
from lightning_same.experiments.study.identity import encode
from lightning_same.experiments.study.outcome import state
from lightning_same.experiments.study.plan import PLAN, RUNS, Run, Study
from lightning_same.experiments.study.reading import dump_yaml
from lightning_same.experiments.study.run import fit_config
from lightning_same.experiments.study.variants import first_runs

ROOM = 64 * 2**20
"""Bytes that must be free before a study begins."""


def check_runs(study: Study) -> None:
    """Build what each variant's configuration names, and fetch data that are missing.

    Args:
        study: the study; one seed stands for all.

    Raises:
        StudyError: names the method, what is wrong, and the choices.
    """
    check_built(first_runs(study.runs), study.lines)


def check_built(runs: Sequence[Run], lines: Mapping[str, str] | None = None) -> None:
    """Build what the configurations name, and fetch data that are missing.

    Args:
        runs: all of them are built.
        lines: for each method, file and line where it stands.

    Raises:
        StudyError: names the method, what is wrong, and the choices.
    """
    checked: dict[str, LightningDataModule] = {}
    nets = set()
    for run in runs:
        at = (lines or {}).get(run.method)
        who = f"{f'{at}: ' if at else ''}Method {run.method!r}"
        try:
            cli = _built(run)
        except StudyError as error:
            if _of_all(run, runs, error):
                who = f"{at.rpartition(':')[0]}: Every method" if at else "Every method"
            raise StudyError(f"{who}: {error}") from error
        if cli.datamodule is None:
            continue
        data = data_of(run)
        if data not in checked:
            checked[data] = cli.datamodule
            _check_data(cli, who)
        net = _as_text(run.config.get("model")) + data + _as_text(run.config.get("trainer"))
        if net not in nets and isinstance(cli.model, ImageClassifier):
            nets.add(net)
            _check_first_step(cli.model, cli.trainer, checked[data], who)


def data_of(run: Run) -> str:
    """Equal for runs on equal data."""
    return _as_text(run.config.get("data"))


def _as_text(config: Any) -> str:
    return json.dumps(encode(config), sort_keys=True)


def check_directory(study: Study, directory: Path) -> list[str]:
    """Refuse a directory that holds something else than results of this study.

    Returns:
        What has to be known of the results that are there.

    Raises:
        StudyError: says what else is there.
    """
    if not directory.exists() and not directory.is_symlink():
        return []
    if not directory.is_dir():
        raise StudyError(f"{directory} is no directory. Give another --results.")
    notes = []
    try:
        planned: Study | None = Study.load(directory / PLAN)
    except StudyError as error:
        planned = None
        if (directory / PLAN).exists():
            notes.append(f"{error} It is written anew.")
    other = f"{directory} holds the results of another study"
    if planned is not None:
        why = study.extends(planned)
        if why:
            raise StudyError(f"{other}: {why}. Give another --results.")
    else:
        strange = _strange(study, directory)
        if strange is not None:
            raise StudyError(f"{directory} is not empty and holds no study, but {strange!r}. Give another --results.")
    for run in study.runs:
        found = state(run, directory / RUNS)
        if found.kind == "other":
            raise StudyError(f"{other}: run {run.name!r} has another configuration there. Give another --results.")
        if found.kind == "broken":
            notes.append(f"Run {run.name!r} does not count as finished: {found.why}. It is trained anew.")
    return notes


def _strange(study: Study, directory: Path) -> str | None:
    """Something in a directory without a plan that is not of this study; None if all of it is.

    A fit by the study's configuration may have written there before: its logger's ``version_0`` is in nobody's way.
    """
    own = {PLAN, RUNS, "tables", "figures", "report.md", "report.html"}
    content = [path.name for path in directory.iterdir() if not re.match(r"\.|version_\d+$", path.name)]
    names = {run.name for run in study.runs}
    runs = list((directory / RUNS).iterdir()) if (directory / RUNS).is_dir() else []
    unknown = [name for name in content if name not in own]
    unknown += [
        f"{RUNS}/{path.name}"
        for path in runs
        if path.name[0] != "." and re.sub(r"\.(log|aside-\d+)$", "", path.name) not in names
    ]
    if not unknown and content and not any(path.name in names for path in runs) and content != [PLAN]:
        unknown = content  # folders of such names are common
    return min(unknown, default=None)


def check_room(directory: Path) -> None:
    """Refuse a disk that is as good as full.

    Raises:
        StudyError: says how much is free.
    """
    free = shutil.disk_usage(directory).free
    if free < ROOM:
        raise StudyError(f"Only {free / 2**20:.1f} MiB are free on the disk that holds {directory}: free some first.")


def check_names(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a run that the study does not have.

    Raises:
        StudyError: names the nearest run, and all that there are.
    """
    names = list(known)
    for name in wanted:
        if name not in names:
            meant = f"{did_you_mean(name, names)} Its runs: ".lstrip()
            raise StudyError(f"There is no run {name!r} in this study. {meant}{', '.join(names)}.")


@contextmanager
def _silent() -> Iterator[None]:
    """What is built to be checked does not report on itself."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _of_all(run: Run, variants: Sequence[Run], error: StudyError) -> bool:
    """Whether the next method fails in the same way: the study's options or its base are wrong, not the method."""
    other = next((variant for variant in variants if variant.method != run.method), None)
    if other is None:
        return False
    try:
        _built(other)
    except StudyError as same:
        return str(same) == str(error)
    return False


def _built(run: Run) -> SAMCLI:
    with TemporaryDirectory() as empty:
        path = Path(empty) / "fit.yaml"
        path.write_text(dump_yaml(fit_config(run, Path(empty))), encoding="utf-8")
        said = io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()), _silent():
                cli = SAMCLI(args=["--config", str(path)], run=False, parser_kwargs={"exit_on_error": False})
        except SystemExit:
            raise StudyError(one_line(said.getvalue())) from None
        except ArgumentError as error:
            raise StudyError(one_line(explained(error.message))) from error
        except Exception as error:  # whatever the user's classes raise when they are made
            raise StudyError(_told(error)) from error
    _check_trains(cli.trainer)
    return cli


def _check_trains(trainer: Trainer) -> None:
    """Refuse a Trainer that would train nothing, log nothing, or wait for other machines."""
    for name in "max_epochs", "max_steps", "limit_train_batches":
        if getattr(trainer, name) == 0:
            raise StudyError(f"`trainer.{name}` must be above 0, got 0: nothing would be trained.")
    for name in "accumulate_grad_batches", "check_val_every_n_epoch":
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise StudyError(f"`trainer.{name}` must be at least 1, got {value}.")
    if trainer.num_nodes > 1:
        raise StudyError(f"`trainer.num_nodes` must be 1, got {trainer.num_nodes}: a run takes devices of one machine.")
    if getattr(trainer, "fast_dev_run", False):
        raise StudyError("`trainer.fast_dev_run` must be false: such a fit logs nothing that could be compared.")


def _check_data(cli: SAMCLI, who: str) -> None:
    """Fetch the data, and read those whose reading is known to be quick and to leave nothing behind."""
    data = cli.datamodule
    try:
        with redirect_stdout(io.StringIO()), _silent():
            data.prepare_data()
            if isinstance(data, NoisyImageData):
                for stage in "fit", "test":
                    data.setup(stage)
    except Exception as error:  # whatever the user's classes raise
        raise StudyError(f"{who}: {_told(error)}") from error


def _check_first_step(model: ImageClassifier, trainer: Trainer, data: LightningDataModule, who: str) -> None:
    """Make the optimizer, and show the network two images, where that is known to be quick and to need no Trainer."""
    own = all(
        getattr(type(model), name) is getattr(ImageClassifier, name) for name in ("configure_optimizers", "losses")
    )
    if not (own and isinstance(data, NoisyImageData)):
        return
    try:
        with redirect_stdout(io.StringIO()), _silent(), torch.no_grad():
            model.trainer = trainer
            model.configure_optimizers()
            model.check_classes(data)
            model.eval().losses(data.train_eval_set.__getitems__([0, 1]))
    except (ValueError, MisconfigurationException) as error:
        raise StudyError(f"{who}: {_told(error)}") from error
    except Exception as error:  # whatever a network makes of images for which it is not meant
        net = f"{type(model.model).__name__} does not take images of shape {data.image_shape}"
        raise StudyError(f"{who}: {net}: {_told(error)}") from error


def _told(error: Exception) -> str:
    """An error with its type where it says nothing without."""
    first = root(error)
    plain = isinstance(error, OSError | RuntimeError | ValueError) and str(error)
    return one_line(error if plain else f"{type(first).__name__}: {first}")
