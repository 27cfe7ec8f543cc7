"""Reading what a CSVLogger or a TensorBoardLogger has written, also while the run goes on."""

import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

CSV = "metrics.csv"
EVENTS = "events.out.tfevents.*"


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """The scalars that a CSVLogger or a TensorBoardLogger has written, also while the run goes on.

    Args:
        run_dir: the folder that holds ``metrics.csv`` or event files, or one above it.

    Returns:
        A row for each step, ascending, the index named ``step``; a column for each key, NaN where it was not logged.
        Where a key was logged several times at a step, the last value. Columns without any number are left out.

    Raises:
        FileNotFoundError: if there is no such folder, or no metrics in it.
        ValueError: if it holds several runs, or a file without metrics, or a word among the numbers of a key.
    """
    runs = find_runs(run_dir)
    if len(runs) > 1:
        raise ValueError(f"{run_dir} holds {len(runs)} runs. Name one of them: {', '.join(map(str, runs))}.")
    table = _read_csv(runs[0] / CSV) if (runs[0] / CSV).exists() else _read_events(runs[0])
    table = table.dropna(axis="columns", how="all")
    if table.empty:
        raise ValueError(f"{runs[0]} holds no metrics yet.")
    return table


def find_runs(run_dir: str | Path) -> list[Path]:
    """The folder itself, if it holds metrics, or else those below it that do, the latest written last.

    Raises:
        FileNotFoundError: if there is no such folder, or no metrics in or below it.
        ValueError: if its metrics are not in a regular file.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        what = f"{run_dir} is not a folder" if folder.exists() else f"There is no folder {run_dir}"
        raise FileNotFoundError(f"{what}. Name the folder that a logger has written.")
    files = [file for pattern in (CSV, EVENTS) for file in folder.rglob(pattern)]
    for file in files:
        if not file.is_file():  # Reading a FIFO would wait forever.
            raise ValueError(f"{file} is not a regular file. Name the folder of a run.")
    if not files:
        raise FileNotFoundError(
            f"{run_dir} holds no metrics: neither a metrics.csv nor event files. Train with"
            " `Trainer(logger=CSVLogger(...))` or with TensorBoardLogger."
        )
    written = {file.parent: file.stat().st_mtime for file in sorted(files, key=lambda file: file.stat().st_mtime)}
    return [folder] if folder in written else sorted(written, key=lambda run: (written[run], run))


def run_names(runs: Sequence[Path]) -> list[str]:
    """Short names of runs: their paths without the parts at the beginning and at the end that all have in common.

    Args:
        runs: their folders. Of a single run, the name has the last two parts, such as ``lightning_logs/version_0``.
            A logger's ``version_3`` at the end is left out where the names differ without it.
    """
    paths = [run.resolve().parts for run in runs]
    if len(paths) == 1:
        return ["/".join(paths[0][-2:]).lstrip("/")]
    shorter = [path[:-1] if re.fullmatch(r"version_\d+", path[-1]) else path for path in paths]
    if len(set(shorter)) == len(paths):
        paths = shorter
    shortest = min(map(len, paths))
    start = next((i for i in range(shortest) if len({path[i] for path in paths}) > 1), shortest - 1)
    room = shortest - start - 1
    end = next((i for i in range(room) if len({path[-1 - i] for path in paths}) > 1), room)
    return ["/".join(path[start : len(path) - end]) for path in paths]


def monitor_names(table: pd.DataFrame, keys: Collection[str]) -> list[str]:
    """The names of the monitors that have logged one of these keys, with their name in it."""
    return sorted({key.split("/")[1] for key in map(str, table) if "/" in key and _without_name(key) in keys})


def of_monitor(table: pd.DataFrame, name: str, names: Collection[str]) -> pd.DataFrame:
    """What one monitor has logged, by keys without its name.

    Args:
        table: what all have logged.
        name: the monitor's; empty for the one without a name.
        names: of all monitors.
    """
    if not name:
        return table[[key for key in table if not set(str(key).split("/")[1:2]) & {*names}]]
    keys = [str(key) for key in table if str(key).split("/")[1:2] == [name]]
    return table[keys].rename(columns={key: _without_name(key) for key in keys})


def _without_name(key: str) -> str:
    first, _, *others = key.split("/")
    return "/".join([first, *others])


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        text = file.read_text(encoding="utf-8")
        # The last line of a run that goes on may be half written.
        table = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1] or "step\n"), low_memory=False)
    except ValueError as error:  # UnicodeDecodeError and pandas' ParserError are ValueErrors.
        raise ValueError(f"{file} is not a CSVLogger's: {str(error).strip()}.") from error
    if "step" not in table:
        raise ValueError(f"{file} has no column `step`, so it is not a CSVLogger's.")
    table = pd.DataFrame({key: _numbers(column, file) for key, column in table.items()}).dropna(subset="step")
    if not np.isfinite(table["step"]).all():
        raise ValueError(f"{file}: column `step` holds an infinite number.")
    return table.astype({"step": int}).groupby("step").last()


def _numbers(column: pd.Series, file: Path) -> pd.Series:
    """The column as floats; NaN throughout where it holds words only."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    words = column[column.notna() & numbers.isna()]
    if len(words) and (numbers.notna().any() or column.name == "step"):
        raise ValueError(
            f"{file}: column `{column.name}` must hold numbers, got {words.iloc[0]!r} in line {words.index[0] + 2}."
        )
    return numbers


def _read_events(folder: Path) -> pd.DataFrame:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Event files need tensorboard: pip install 'lightning-same[plots]'.", name=error.name
        ) from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    columns = {}
    for tag in events.Tags()["scalars"]:
        scalars = pd.DataFrame(events.Scalars(tag))
        columns[tag] = scalars.groupby("step")["value"].last()
    return pd.DataFrame(columns).sort_index().rename_axis("step")
