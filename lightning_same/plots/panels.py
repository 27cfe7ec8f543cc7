"""What figures consist of: stacked areas, lines with a band, and labels at their right ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter

from lightning_same.plots.palette import Style

MAX_POINTS = 300
"""Points per curve. Where there are more, neighbors are drawn as their mean and their range."""

MAX_MARKERS = 30
"""Up to so many points, each point has a marker."""

MAX_POINTS_COMPARED = 100
"""Points per curve where runs are compared: so that dashes can be told apart on noisy curves."""

MARKERS_COMPARED = 8
"""Markers per curve there, so that curves can be told apart without color."""

LARGEST = 1e150
"""Matplotlib's axes overflow near the largest float. Larger values are left out, like infinite ones."""

RC: dict[Any, Any] = {
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

Ends = dict[str, tuple[float, float]]
"""Where lines and areas end at the right, in data coordinates, by their label."""


def finite(values: pd.DataFrame) -> pd.DataFrame:
    """The rows whose values can all be drawn."""
    return values[(values.abs() <= LARGEST).all(axis="columns")]


def stacked_areas(axes: Axes, shares: pd.DataFrame, styles: Sequence[Style]) -> Ends:
    """Draw areas on top of each other.

    Args:
        axes: where to draw.
        shares: a column for each area, a row for each step, at least one.
        styles: one for each column.

    Returns:
        The middle of each area's right edge; not of areas that have no height at any step.
    """
    steps, groups = averaged(shares)
    means = groups.mean()
    if len(means) == 1:  # An area needs two edges.
        axes.set_xticks(steps)
        means, steps = pd.concat([means, means]), np.array([steps[0] - 0.5, steps[0] + 0.5])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    areas = axes.stackplot(steps, means.to_numpy().T, colors=[style.color for style in styles])
    for area, style in zip(areas, styles, strict=True):
        area.set(hatch=style.hatch, edgecolor="white", linewidth=0.8)
    axes.set(ylim=(0, 1), xlim=steps[[0, -1]])
    middles = means.iloc[-1].cumsum() - means.iloc[-1] / 2
    visible = means.max() > 0
    return {
        style.label: (steps[-1], middle) for style, middle, shown in zip(styles, middles, visible, strict=True) if shown
    }


def lines(
    axes: Axes,
    table: pd.DataFrame,
    styles: Mapping[str, Style],
    residuals: Mapping[str, str] | None = None,
    compared: bool = False,
) -> Ends:
    """Draw a line for each key, with a band.

    Args:
        axes: where to draw.
        table: a column for each key, a row for each step.
        styles: the keys and how each is drawn.
        residuals: for some keys, the key of the value's uncertainty: the band is the value plus and minus it. Without
            it the band spans the middle half of the points that are drawn as one.
        compared: whether the line is one of several runs: fewer points and, at some of them, markers.

    Returns:
        Where each line ends; not of those without a label or a finite value.
    """
    ends = {}
    for key, style in styles.items():
        residual = (residuals or {}).get(key)
        columns = [key, residual] if residual in table else [key]
        values = finite(table[columns])
        if values.empty:
            continue
        steps, groups = averaged(values, MAX_POINTS_COMPARED if compared else MAX_POINTS)
        mean = groups.mean()
        low, high = groups[key].quantile(0.25), groups[key].quantile(0.75)
        if residual in table:
            low, high = mean[key] - mean[residual], mean[key] + mean[residual]
        marker = style.marker if compared or len(values) <= MAX_MARKERS else ""
        axes.plot(
            steps,
            mean[key],
            ls=style.linestyle,
            color=style.color,
            lw=1.4,
            marker=marker,
            markevery=max(1, len(steps) // MARKERS_COMPARED) if compared else 1,
            ms=3,
            clip_on=False,
        )
        axes.fill_between(steps, low, high, color=style.color, alpha=0.18, lw=0)
        ends[style.label] = (steps[-1], mean[key].iloc[-1])
    if ends:
        _limit_steps(axes)
    return {label: end for label, end in ends.items() if label}


def log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers; leave it linear where no value is positive."""
    heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.zeros(0)])
    if not (heights > 0).any():
        return
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def show_zero(axes: Axes) -> None:
    """Let the vertical axis reach zero; a line marks zero where values lie on both sides of it."""
    low, high = axes.get_ylim()
    values = axes.dataLim.intervaly
    if values[0] >= 0:
        axes.set_ylim(0, high)
    elif values[1] <= 0:
        axes.set_ylim(low, 0)
    else:
        axes.axhline(0, color="black", lw=0.6, zorder=1, gid="zero")


def panel_grid(figure: Figure, panels: int, columns: int) -> list[Axes]:
    """Axes in rows, which share their steps; each has the steps below it."""
    columns = min(columns, panels)
    grid = figure.subplots(-(-panels // columns), columns, sharex=True, squeeze=False).flatten()
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[:panels]:
        axes.set_xlabel("step")
        axes.xaxis.set_tick_params(labelbottom=True)
    return list(grid[:panels])


def legend_of_runs(figure: Figure, styles: Mapping[str, Style]) -> None:
    """A legend above the panels, with the label of each style."""
    handles = [
        Line2D([], [], color=style.color, ls=style.linestyle, lw=1.4, marker=style.marker, ms=3)
        for style in styles.values()
    ]
    # Matplotlib leaves out labels that begin with an underscore, unless they are set afterwards.
    legend = figure.legend(handles, ["."] * len(handles), loc="outside upper left", ncols=6, frameon=False)
    for text, style in zip(legend.get_texts(), styles.values(), strict=True):
        text.set(text=style.label, parse_math=False)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Write labels in the right margin, each beside its end or as near as the others leave room.

    The axes must have their limits and their place in the figure.
    """
    gap = 1.25 * mpl.rcParams["font.size"] * axes.figure.dpi / 72 / axes.get_window_extent().height
    to_axes = axes.transData + axes.transAxes.inverted()
    low, high = axes.get_ylim()  # Zero has no place on a logarithmic axis: its label stands at the bottom.
    points = sorted(
        (to_axes.transform((x, min(max(y, low), high)))[::-1].tolist(), label) for label, (x, y) in ends.items()
    )
    places = [height for (height, _), _ in points]
    # Upwards as far as the one below demands, then down again from the top.
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], 1 - gap / 2 if i == len(places) - 1 else places[i + 1] - gap)
    for ((height, x), label), place in zip(points, places, strict=True):
        axes.annotate(
            label,
            parse_math=False,
            xy=(x, height),
            xytext=(1.04, place),
            xycoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4", "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def averaged(
    table: pd.DataFrame, most: int = MAX_POINTS
) -> "tuple[np.ndarray, pd.api.typing.DataFrameGroupBy[Any, Any]]":
    """Neighboring rows grouped, so that at most `most` groups are left, and the steps where to draw them."""
    group = np.arange(len(table)) * most // max(most, len(table))
    steps = table.index.to_series().groupby(group).mean().to_numpy(copy=True)
    steps[[0, -1]] = table.index[[0, -1]]
    return steps, table.groupby(group)


def _limit_steps(axes: Axes) -> None:
    """Let the horizontal axis end at the last step of the panels that share it."""
    drawn = np.array([panel.dataLim.intervalx for panel in axes.get_shared_x_axes().get_siblings(axes)])
    first, last = drawn[:, 0].min(), drawn[:, 1].max()
    if first == last:  # A single point stands at the right edge, where curves end and their labels are.
        axes.xaxis.set_major_locator(FixedLocator([first]))
        axes.set_xlim(first - 1, first)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.autoscale(axis="x")
