"""``lightning-same plot``: figures of what the monitors have logged, as PNG and SVG."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from typing_extensions import override

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MONITORS = {
    "fractions": "CheckpointFractionMonitor",
    "norms": "GradientNormMonitor",
    "sharpness": "SharpnessMonitor",
}
"""The figures, and the callback that logs what each shows."""


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(args: Sequence[str] | None = None) -> None:
    """Draw every figure that a run has metrics for.

    Args:
        args: instead of the command line's.
    """
    parser = Parser(prog="lightning-same plot", description="Draw what the monitors have logged, as PNG and SVG.")
    parser.add_argument("run_dir", type=Path, help="folder of a run; of a folder above several runs, the newest")
    parser.add_argument("--out", type=Path, help="folder to write the figures to (default: that of the run)")
    given = parser.parse_args(args)
    try:
        _plot(given.run_dir, given.out)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        parser.error(str(error))


def _plot(run_dir: Path, out: Path | None) -> None:
    # Here, so that --help does not wait for Matplotlib and pandas.
    from lightning_same.plots import draw_fractions, draw_norms, draw_sharpness, read_metrics
    from lightning_same.plots.metrics import find_runs

    *older, run = find_runs(run_dir)
    table = read_metrics(run)
    if older:
        sys.stderr.write(f"{run_dir} holds {len(older) + 1} runs; this is the newest, {run}.\n")
    figures, missing = {}, []
    for draw, name in zip((draw_fractions, draw_norms, draw_sharpness), MONITORS, strict=True):
        try:
            figures[name] = draw(table)
        except KeyError:
            missing.append(f"{name}: add {MONITORS[name]}")
        except ValueError as error:
            missing.append(f"{name}: {str(error).rstrip('.')}")
    if not figures:
        raise ValueError(f"{run_dir} has nothing to draw. {'; '.join(missing)}.")
    folder = out or (run if older else run_dir)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            file = folder / f"{name}.{kind}"
            _write(figure, file)
            sys.stdout.write(f"{file}\n")
    for message in missing:
        sys.stderr.write(f"{message}\n")


def _write(figure: "Figure", file: Path) -> None:
    import matplotlib as mpl

    from lightning_same.plots.panels import RC

    content = io.BytesIO()
    with mpl.rc_context(RC):
        # Without a date, the same metrics give the same file.
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(content, format=file.suffix[1:], dpi=150, metadata=metadata)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # Writing to a FIFO would wait forever.
            raise FileExistsError(None, "not a regular file")
        file.write_bytes(content.getvalue())
    except OSError as error:
        raise OSError(f"{file} cannot be written: {error.strerror}. Name another folder with --out.") from error
