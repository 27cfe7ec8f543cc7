"""``lightning-same plot``: figures of what a run has logged, as PNG and SVG, and of several runs beside each other."""

import argparse
import difflib
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from typing_extensions import override

from lightning_same.cli.parser import Parser

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

EPILOG = """examples:
  lightning-same plot lightning_logs/version_0
  lightning-same plot runs/SGD runs/SAM runs/SAME --labels SGD SAM "SAME, ckpt 1" --out figures
  lightning-same plot runs/SGD runs/SAM --metric val/loss
  lightning-same plot runs/SGD runs/SAM --html
  lightning-same plot lightning_logs --watch
"""


class NotYet(ValueError):
    """The runs have nothing to draw; later they may have. What is missing, and what to do."""

    @override
    def __str__(self) -> str:
        return " ".join(map(str, self.args))


def main(args: Sequence[str] | None = None) -> None:
    """Draw every figure that the runs have metrics for.

    Args:
        args: instead of the command line's.
    """
    options = parser()
    given = options.parse_args(args)
    if given.labels and len(given.labels) != len(given.runs):
        options.error(f"--labels must name every run: got {len(given.labels)} labels for {len(given.runs)} runs.")
    if given.labels and len(set(given.labels)) < len(given.labels):
        options.error(f"--labels must differ, got {', '.join(given.labels)}.")
    try:
        _watch(given) if given.watch else _plot(given, set())
    except KeyboardInterrupt:  # The way to end --watch.
        sys.stdout.write("\n")
    except (ModuleNotFoundError, OSError, ValueError) as error:
        options.error("\n".join(map(str, error.args)) if isinstance(error, NotYet) else str(error))


def parser() -> Parser:
    """Of the command's options."""
    made = Parser(
        prog="lightning-same plot",
        description="Draw what the monitors have logged, as PNG and SVG.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; of a folder above several, the newest run")
    add("--labels", nargs="+", metavar="LABEL", help="names of the runs, in their order (default: from their folders)")
    add("--metric", nargs="+", metavar="KEY", help="draw these logged values, such as val/loss, a figure for each")
    add("--html", action="store_true", help="a page for the browser instead: runs.html, values on hover, one file")
    add("--out", type=Path, help="folder to write to (default: that of the run; of several, the one above them)")
    add("--watch", action="store_true", help="draw again whenever the runs have logged more, until Ctrl-C")
    add("--interval", type=_seconds, default=5.0, help="with --watch: seconds between two looks (default: 5)")
    return made


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be seconds > 0, got {text}")
    return seconds


def _watch(given: argparse.Namespace) -> None:
    """Draw, and draw again whenever the loggers have written; wait for runs that have nothing to draw yet."""
    drawn, said = None, ""
    told: set[str] = set()
    while True:
        try:
            written = _written(given.runs)
            if written != drawn:
                step = _plot(given, told)
                sys.stdout.write(f"Drawn at step {step}. Ctrl-C ends.\n")
                drawn, said = written, ""
        except NotYet as error:
            if str(error) != said:
                said = str(error)
                sys.stderr.write(f"Waiting: {said}\n")
        sys.stdout.flush()
        time.sleep(given.interval)


def _written(run_dirs: Sequence[Path]) -> list[tuple[Path, int, int]]:
    """The files of metrics, when they were written, and their sizes."""
    from lightning_same.plots.metrics import CSV, EVENTS

    runs = [_runs(run_dir)[-1] for run_dir in run_dirs]
    files = [file for run in runs for pattern in (CSV, EVENTS) for file in sorted(run.glob(pattern))]
    return [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]


def _plot(given: argparse.Namespace, told: set[str]) -> int:
    """Draw once.

    Args:
        given: the command's arguments.
        told: the files and notes that need not be told again; those that are told now are added.

    Returns:
        The last step that is drawn.
    """
    from lightning_same.plots import read_metrics
    from lightning_same.plots.metrics import run_names

    found = [_runs(run_dir) for run_dir in given.runs]
    notes = [
        f"{run_dir} holds {len(runs)} runs; this is the newest, {runs[-1]}."
        for run_dir, runs in zip(given.runs, found, strict=True)
        if len(runs) > 1
    ]
    newest = [runs[-1] for runs in found]
    labels = given.labels or run_names(newest)
    if len(set(labels)) < len(labels):
        raise ValueError(f"every run must be named once, got {', '.join(map(str, newest))}.")
    try:
        tables = {label: read_metrics(run) for label, run in zip(labels, newest, strict=True)}
    except (OSError, ValueError) as error:
        raise NotYet(str(error)) from error
    out = given.out or _above(newest if len(found) == 1 < len(found[0]) else given.runs)
    last = max(int(table.index.max()) for table in tables.values())
    if given.html:
        file = out / "runs.html"
        _write(_page(tables, given.metric or []), file)
        _tell(sys.stdout, file, told)
        return last
    figures, missing = (_metrics(tables, given.metric), []) if given.metric else _figures(tables)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            file = out / f"{name}.{kind}"
            _write(_drawn(figure, kind), file)
            _tell(sys.stdout, file, told)
    # What is missing now may be logged later.
    for note in notes if given.watch else [*notes, *missing]:
        _tell(sys.stderr, note, told)
    return last


def _tell(stream: TextIO, line: object, told: set[str]) -> None:
    """Write a line, once."""
    if str(line) not in told:
        stream.write(f"{line}\n")
    told.add(str(line))


def _page(tables: "dict[str, pd.DataFrame]", keys: Sequence[str]) -> bytes:
    """The page for the browser."""
    from lightning_same.plots.interactive import html_page

    _check_logged(tables, keys)
    try:
        return html_page(tables, keys).encode()
    except ValueError as error:
        raise NotYet(str(error)) from error


def _runs(run_dir: Path) -> list[Path]:
    """The runs in a folder, the newest last."""
    from lightning_same.plots.metrics import find_runs

    try:
        return find_runs(run_dir)
    except (OSError, ValueError) as error:
        raise NotYet(str(error)) from error


def _above(folders: Sequence[Path]) -> Path:
    """The folder that all of these lie in; of one, itself."""
    absolute = any(folder.is_absolute() for folder in folders)
    return Path(os.path.commonpath([folder.absolute() if absolute else folder for folder in folders]))


def _figures(tables: "dict[str, pd.DataFrame]") -> "tuple[dict[str, Figure], list[str]]":
    """What the monitors have logged, and what is missing."""
    from lightning_same.plots.figures import MONITORED
    from lightning_same.plots.metrics import monitor_names, of_monitor

    figures, notes = {}, []
    for kind, (draw, keys, monitor) in MONITORED.items():
        names = sorted({name for table in tables.values() for name in monitor_names(table, keys)})
        without = []
        for name in ["", *names]:
            of_name = {run: of_monitor(table, name, names) for run, table in tables.items()}
            figure = f"{kind}_{name}" if name else kind
            try:
                figures[figure] = draw(of_name)
            except KeyError:
                without.append(name)
            except ValueError as error:
                notes.append(f"{figure}: {str(error).rstrip('.')}")
            else:
                missing = [run for run, table in of_name.items() if monitor and not any(key in table for key in keys)]
                notes += [f"{figure}: not of {run}, which has not logged them; add {monitor}" for run in missing]
        if monitor and len(without) == 1 + len(names):
            notes.append(f"{kind}: add {monitor}")
    if not figures:
        monitored = {key for _, keys, _ in MONITORED.values() for key in keys} | {"epoch"}
        other = sorted({str(key) for table in tables.values() for key in table} - monitored)[:3]
        more = f" What else is logged is drawn by --metric, such as --metric {' '.join(other)}." if other else ""
        raise NotYet(f"{', '.join(tables)} has nothing to draw.", f"{'; '.join(notes)}.{more}")
    return figures, notes


def _metrics(tables: "dict[str, pd.DataFrame]", keys: Sequence[str]) -> "dict[str, Figure]":
    """A figure for each key, under a name that files can have."""
    from lightning_same.plots import draw_metric

    _check_logged(tables, keys)
    figures = {}
    for key in keys:
        name = re.sub(r"[^\w.+-]", "-", key)
        try:
            figures[name] = draw_metric(tables, key)
        except ValueError as error:
            raise NotYet(str(error)) from error
    return figures


def _check_logged(tables: "dict[str, pd.DataFrame]", keys: Sequence[str]) -> None:
    """Name the nearest keys of one that no run has logged."""
    logged = sorted({str(key) for table in tables.values() for key in table})
    for key in keys:
        if key not in logged:
            near = difflib.get_close_matches(key, logged, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Logged are {', '.join(logged)}."
            raise NotYet(f"--metric: {key} is not logged.", hint)


def _drawn(figure: "Figure", kind: str) -> bytes:
    """The picture as it stands in its file."""
    import matplotlib as mpl

    from lightning_same.plots.panels import RC

    content = io.BytesIO()
    with mpl.rc_context(RC):
        # Without a date, the same metrics give the same file.
        figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _write(content: bytes, file: Path) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():
            raise FileExistsError(None, "not a regular file")
        part.write_bytes(content)
        part.replace(file)  # A viewer that follows the file never sees half of it.
    except OSError as error:
        raise OSError(f"{file} cannot be written: {error.strerror}. Name another folder with --out.") from error
