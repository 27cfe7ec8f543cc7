"""Whether a run is finished: ``done.json`` is whole, of this configuration, and the files are as it says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning_same.experiments.study.identity import checksum, old_digest
from lightning_same.experiments.study.plan import MARKER, METRICS, Run
from lightning_same.experiments.study.schema import Outcome, checked
from lightning_same.experiments.study.writing import read_regular


class State(NamedTuple):
    """What is there of a run.

    Attributes:
        kind: ``done``; ``left``, which is not begun or not ended; ``broken``, which ended but is not as it was then;
            ``other``, which ended with another configuration.
        why: what is wrong, for the last two.
    """

    kind: Literal["done", "left", "broken", "other"]
    why: str = ""


def state(run: Run, directory: Path) -> State:
    """Look at the files of a run.

    Args:
        run: the run.
        directory: the directory of all runs.
    """
    place = directory / run.name
    try:
        if not (place / MARKER).exists() and not (place / MARKER).is_symlink():
            return State("left")
        outcome = read_outcome(place)
    except (OSError, ValueError) as error:
        return State("broken", _said(error))
    known = {run.digest} if outcome.files is not None else {run.digest, old_digest(run.config)}
    if outcome.digest not in known:
        return State("other", f"{MARKER} is of another configuration")
    try:
        read_metrics(place, outcome)
    except (OSError, ValueError) as error:
        return State("broken", _said(error))
    return State("done")


def finished(run: Run, directory: Path) -> bool:
    """Whether the run is there, whole and with this configuration."""
    return state(run, directory).kind == "done"


def read_outcome(place: Path) -> Outcome:
    """Read the ``done.json`` of a run.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not as it was written.
    """
    try:
        content = json.loads(read_regular(place / MARKER))
        outcome = checked(Outcome, content)
    except (ValueError, RecursionError) as error:  # also what is no UTF-8
        raise ValueError(f"{MARKER} is not as it was written: {error}") from error
    if outcome.check not in (None, check(content)):
        raise ValueError(f"{MARKER} is not as it was written: something in it was changed")
    return outcome


def read_metrics(place: Path, outcome: Outcome) -> bytes:
    """Read what the fit of a run has logged.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not what the run has left. Without a checksum, if its last row is cut off.
    """
    content = read_regular(place / METRICS, most=2**32)
    if outcome.files is None and not content.endswith(b"\n"):
        raise ValueError(f"{METRICS} ends in the middle of a row")
    if outcome.files is not None and outcome.files.get(METRICS) != checksum(content):
        raise ValueError(f"{METRICS} is not as it was when the run ended")
    return content


def check(content: Mapping[str, Any]) -> str:
    """The checksum of an outcome, for its own ``check``."""
    return checksum(json.dumps({key: value for key, value in content.items() if key != "check"}, sort_keys=True))


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename).name if error.filename else 'a file'}: {error.strerror}"
    return str(error).rstrip(".")
