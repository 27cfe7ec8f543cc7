"""Pictures of a finished or running run, from its logged metrics."""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import matplotlib as mpl
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Pictures need {error.name}: pip install 'lightning-same[plots]'.", name=error.name
    ) from error

CSV = "metrics.csv"

MOST = 300
"""Points that a curve is drawn with; of more, neighbours are drawn as their mean and their range."""

FEW = 30
"""Points up to which each has a marker."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.xmargin": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning-same",
}


class Look(NamedTuple):
    """How one quantity is drawn.

    Okabe and Ito's colours, which the colour-blind tell apart; dashes and hatches do without colour.
    """

    label: str
    color: str
    dashes: str | tuple[int, tuple[float, ...]] = "-"
    hatch: str = ""


CKPTS = {
    "ckpt1": Look("1: r > 1", "#0072B2"),
    "ckpt2": Look("2: 0 < r < 1", "#56B4E9", "--", "////"),
    "ckpt3": Look("3: r < -1", "#D55E00", (0, (5, 1, 1, 1)), "...."),
    "ckpt4": Look("4: -1 < r < 0", "#E69F00", ":", "xxxx"),
}
REST = {"rest": Look("rest", "#DDDDDD")}
GRADIENTS = {
    "grad_norm/base": Look("g, at w", "#000000"),
    "grad_norm/perturbed": Look("s, at w + e", "#0072B2", "--"),
    "grad_norm/step": Look("d, the step", "#D55E00", ":"),
}
PANELS = {
    "norm of the gradients": GRADIENTS,
    "norm of s in each checkpoint": {f"grad_norm/{name}": look for name, look in CKPTS.items()},
    "cosine of g and s": {"grad_cosine": Look("", "#000000")},
    "norm of the weights": {"weight_norm": Look("", "#000000")},
}
LOGARITHMIC = ("norm of the gradients", "norm of s in each checkpoint")
ENDS = {
    "sharpness/top_eigenvalue": Look("top", "#0072B2"),
    "sharpness/bottom_eigenvalue": Look("bottom", "#D55E00", "--"),
}
RESIDUALS = {
    "sharpness/top_eigenvalue": "sharpness/residual",
    "sharpness/bottom_eigenvalue": "sharpness/bottom_residual",
}


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """The scalars that a CSVLogger or a TensorBoardLogger has written, also while the run goes on.

    Args:
        run_dir: the folder that holds ``metrics.csv`` or event files, or one above it.

    Returns:
        A row for each step, ascending, the index named ``step``; a column for each key, NaN where it was not logged.
        Where a key was logged several times at a step, the last value.

    Raises:
        FileNotFoundError: if there is no such folder, or no metrics in it.
        ValueError: if it holds several runs, or a file without metrics.
    """
    runs = _runs(run_dir)
    if len(runs) > 1:
        raise ValueError(f"{run_dir} holds {len(runs)} runs. Name one of them: {', '.join(map(str, runs))}.")
    table = _read_csv(runs[0] / CSV) if (runs[0] / CSV).exists() else _read_events(runs[0])
    table = table.dropna(axis="columns", how="all")
    if table.empty:
        raise ValueError(f"{runs[0]} holds no metrics yet.")
    return table


def _runs(run_dir: str | Path) -> list[Path]:
    """The folder, if it holds metrics, or those below it that do, the latest written last."""
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {run_dir}.")
    files = [file for pattern in (CSV, "events.out.tfevents.*") for file in folder.rglob(pattern)]
    if not files:
        raise FileNotFoundError(
            f"{run_dir} holds no metrics: neither a metrics.csv nor event files. Train with"
            " `Trainer(logger=CSVLogger(...))` or with TensorBoardLogger."
        )
    written = {file.parent: file.stat().st_mtime for file in sorted(files, key=lambda file: file.stat().st_mtime)}
    return [folder] if folder in written else sorted(written, key=lambda run: (written[run], run))


def _read_csv(file: Path) -> pd.DataFrame:
    text = file.read_text()
    # The last line of a run that goes on may be half written.
    table = pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1] or "step\n"))
    if "step" not in table:
        raise ValueError(f"{file} has no column `step`, so it is not a CSVLogger's.")
    return table.dropna(subset="step").astype({"step": int}).groupby("step").last()


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


def draw_fractions(table: pd.DataFrame) -> Figure:
    """The shares of the four checkpoints over training, stacked; those of clean and noisy samples beside, if logged.

    Args:
        table: what `read_metrics` returns.

    Raises:
        KeyError: names the missing keys.
    """
    parts = {"": "all samples", "_clean": "clean samples", "_noisy": "noisy samples"}
    looks = CKPTS | REST
    _require(table, [f"ckpt_fraction/{name}" for name in looks])
    shares = {of: table.filter(items=[f"ckpt_fraction{of}/{name}" for name in looks]) for of in parts}
    drawn = {of: _finite(each) for of, each in shares.items() if len(each.columns) == len(looks)}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.4 + 3.4 * len(drawn), 3.2))
        row = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, (of, each) in zip(row, drawn.items(), strict=True):
            ends = _stack(axes, each, list(looks.values()))
            axes.set_xlabel("step")
            axes.set_title(parts[of] if len(drawn) > 1 else "")
        row[0].set_ylabel("share of the gradient's elements")
        figure.draw_without_rendering()
        _label(row[-1], ends)
    return figure


def draw_norms(table: pd.DataFrame) -> Figure:
    """The norms of the gradients, of s in each checkpoint and of the weights, and the cosine of g and s.

    Args:
        table: what `read_metrics` returns; what is not in it is left out.

    Raises:
        KeyError: names the missing keys, if there is none of them.
    """
    found = {title: {key: look for key, look in looks.items() if key in table} for title, looks in PANELS.items()}
    found = {title: looks for title, looks in found.items() if looks}
    if not found:
        _require(table, [key for looks in PANELS.values() for key in looks])
    with mpl.rc_context(STYLE):
        columns = min(2, len(found))
        rows = -(-len(found) // columns)
        figure = Figure(figsize=(4.8 * columns, 2.6 * rows))
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.remove()
        ends = []
        for axes, (title, looks) in zip(grid.flat, found.items(), strict=False):
            if title in LOGARITHMIC:
                axes.set_yscale("log", nonpositive="mask")
            ends.append(_curves(axes, table, looks))
            if title in LOGARITHMIC:
                low, high = axes.get_ylim()
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set(title=title, xlabel="step")
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.draw_without_rendering()
        for axes, each in zip(grid.flat, ends, strict=False):
            _label(axes, each)
    return figure


def draw_sharpness(table: pd.DataFrame) -> Figure:
    """The ends of the Hessian's spectrum over training, each within the band of its own residual.

    Values that had not converged are drawn as crosses.

    Args:
        table: what `read_metrics` returns.

    Raises:
        KeyError: names the missing keys.
    """
    _require(table, ["sharpness/top_eigenvalue"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.2))
        axes = figure.subplots()
        looks = {key: look for key, look in ENDS.items() if key in table}
        ends = _curves(axes, table, looks, RESIDUALS)
        if "sharpness/converged" in table:
            doubtful = _finite(table.loc[table["sharpness/converged"] == 0, list(looks)])
            for key, look in looks.items():
                axes.plot(doubtful.index, doubtful[key], "x", color=look.color, ms=7, label="not converged")
            if len(doubtful):
                axes.legend(*(each[:1] for each in axes.get_legend_handles_labels()), frameon=False)
        if axes.get_ylim()[0] < 0:
            axes.axhline(0, color="black", lw=0.6)
        axes.set(xlabel="step", ylabel="eigenvalue of the Hessian")
        figure.draw_without_rendering()
        _label(axes, ends)
    return figure


FIGURES = {
    "fractions": (draw_fractions, "CheckpointFractionMonitor"),
    "norms": (draw_norms, "GradientNormMonitor"),
    "sharpness": (draw_sharpness, "SharpnessMonitor"),
}


def main(args: Sequence[str] | None = None) -> None:
    """The command ``lightning-same plot``: every picture that a run has metrics for, as PNG and SVG.

    Args:
        args: instead of the command line's.
    """
    parser = argparse.ArgumentParser(prog="lightning-same plot", description="Draw what the monitors have logged.")
    parser.add_argument("run_dir", type=Path, help="the folder of the run, or one above its runs: the newest")
    parser.add_argument("--out", type=Path, help="the folder to write the pictures to; by default that of the run")
    given = parser.parse_args(args)
    try:
        *older, run = _runs(given.run_dir)
        table = read_metrics(run)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if older:
        sys.stderr.write(f"{given.run_dir} holds {len(older) + 1} runs; this is the newest, {run}.\n")
    missing = []
    for name, (draw, monitor) in FIGURES.items():
        try:
            figure = draw(table)
        except KeyError:
            missing.append(f"{name}: add {monitor}")
            continue
        folder = given.out or (run if older else given.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (folder / f"{name}.png", folder / f"{name}.svg"):
            with mpl.rc_context(STYLE):
                # Without a date, the same metrics give the same file.
                figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
            sys.stdout.write(f"{file}\n")
    if len(missing) == len(FIGURES):
        parser.error("\n".join([f"{given.run_dir} has nothing to draw.", *missing]))
    for message in missing:
        sys.stderr.write(f"{message}\n")


def _require(table: pd.DataFrame, keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in table]
    if missing:
        raise KeyError(f"the run has not logged {', '.join(missing)}.")


def _finite(values: pd.DataFrame) -> pd.DataFrame:
    return values.replace([np.inf, -np.inf], np.nan).dropna()


def _thinned(table: pd.DataFrame) -> "tuple[np.ndarray, pd.api.typing.DataFrameGroupBy[Any, Any]]":
    """Neighbours together, so that at most `MOST` groups are left, and the steps where to draw them."""
    place = np.arange(len(table)) * MOST // max(MOST, len(table))
    steps = table.index.to_series().groupby(place).mean().to_numpy(copy=True)
    steps[[0, -1]] = table.index[[0, -1]]
    return steps, table.groupby(place)


def _stack(axes: Axes, shares: pd.DataFrame, looks: Sequence[Look]) -> dict[str, tuple[float, float]]:
    """Areas on each other.

    Returns:
        The middle of each area's right edge, by its label; not of areas that have no height anywhere.
    """
    steps, groups = _thinned(shares)
    thin = groups.mean()
    if len(thin) == 1:  # An area needs two edges.
        axes.set_xticks(steps)
        thin, steps = pd.concat([thin, thin]), np.array([steps[0] - 0.5, steps[0] + 0.5])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    areas = axes.stackplot(steps, thin.to_numpy().T, colors=[look.color for look in looks])
    for area, look in zip(areas, looks, strict=True):
        area.set(hatch=look.hatch, edgecolor="white", linewidth=0.8)
    axes.set(ylim=(0, 1), xlim=steps[[0, -1]])
    middles = thin.iloc[-1].cumsum() - thin.iloc[-1] / 2
    tall = thin.max() > 0
    return {look.label: (steps[-1], middle) for look, middle, any_ in zip(looks, middles, tall, strict=True) if any_}


def _curves(
    axes: Axes, table: pd.DataFrame, looks: Mapping[str, Look], residuals: Mapping[str, str] | None = None
) -> dict[str, tuple[float, float]]:
    """A line for each key; of many points the means. The band is that of the residual, or of the middle half.

    Returns:
        Where each line ends, by its label.
    """
    ends = {}
    for key, look in looks.items():
        residual = (residuals or {}).get(key)
        columns = [key, residual] if residual in table else [key]
        values = _finite(table[columns])
        if values.empty:
            continue
        steps, groups = _thinned(values)
        mean = groups.mean()
        low, high = groups[key].quantile(0.25), groups[key].quantile(0.75)
        if residual in table:
            low, high = mean[key] - mean[residual], mean[key] + mean[residual]
        marker = "o" if len(values) <= FEW else ""
        axes.plot(steps, mean[key], ls=look.dashes, color=look.color, lw=1.4, marker=marker, ms=3, clip_on=False)
        axes.fill_between(steps, low, high, color=look.color, alpha=0.18, lw=0)
        ends[look.label] = (steps[-1], mean[key].iloc[-1])
    drawn = np.array([each.dataLim.intervalx for each in axes.get_shared_x_axes().get_siblings(axes)])
    first, last = drawn[:, 0].min(), drawn[:, 1].max()
    if first == last:  # One point: at the right edge, where curves end, and their names stand.
        axes.xaxis.set_major_locator(FixedLocator([first]))
        axes.set_xlim(first - 1, first)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.autoscale(axis="x")
    return {label: end for label, end in ends.items() if label}


def _label(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Names in the right margin, each beside the end of its curve or as near as the others leave room.

    The axes must have their limits and their place in the figure.
    """
    gap = 1.25 * mpl.rcParams["font.size"] * axes.figure.dpi / 72 / axes.get_window_extent().height
    to_axes = axes.transData + axes.transAxes.inverted()
    points = sorted((to_axes.transform(end)[::-1].tolist(), label) for label, end in ends.items())
    places = [height for (height, _), _ in points]
    # Upwards as far as the one below demands, then down again from the top.
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], 1 - gap / 2 if i == len(places) - 1 else places[i + 1] - gap)
    for ((height, x), label), place in zip(points, places, strict=True):
        axes.annotate(
            label,
            xy=(x, height),
            xytext=(1.04, place),
            xycoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4", "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
            annotation_clip=False,
        )
