"""Heat maps: the layers, or the parameter groups, from top to bottom, and training from left to right."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_same.plots.comparison import Runs, by_name, finish
from lightning_same.plots.palette import CKPTS, SEQUENTIAL
from lightning_same.plots.panels import LARGEST, RC, averaged

COLUMNS = 4
MOST_LABELS = 50
"""Of more rows every second, third and so on has its name beside it."""


class Map(NamedTuple):
    """One heat map.

    Attributes:
        title: above it.
        values: a row for each step, a column for each layer.
    """

    title: str
    values: pd.DataFrame


def draw_layers(runs: Runs) -> Figure:
    """What the monitors log with ``per_layer=True``, as heat maps over training with a row for each tensor.

    The share of each checkpoint in the tensor's elements and in its squared norm of s, the tensor's share of the
    squared norm of s of all, and its cosine of g and s.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs, one below the other. What has
            not been logged is left out.

    Raises:
        KeyError: if no run has logged any of them.
    """
    return _draw(runs, "layer")


def draw_groups(runs: Runs) -> Figure:
    """What the monitors log with ``per_group=True``, as `draw_layers` does, with a row for each parameter group.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs, one below the other.

    Raises:
        KeyError: if no run has logged any of them.
    """
    return _draw(runs, "group")


def _draw(runs: Runs, part: str) -> Figure:
    tables = by_name(runs)
    maps = {name: list(_maps(table, part)) for name, table in tables.items()}
    maps = {name: of_run for name, of_run in maps.items() if of_run}
    if not maps:
        raise KeyError(f"the run has not logged ckpt_fraction_{part}/... or grad_norm_{part}/... with finite values.")
    rows = [
        [Map(f"{name}, {each.title}" if len(maps) > 1 else each.title, each.values) for each in some]
        for name, of_run in maps.items()
        for some in _in_rows(of_run)
    ]
    heights = [0.75 + 0.14 * min(max(4, *(len(each.values.columns) for each in row)), MOST_LABELS) for row in rows]
    columns = max(map(len, rows))
    longest = max(len(str(layer)) for row in rows for layer in row[0].values)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(0.6 + 0.07 * longest + 2.9 * columns, sum(heights) + 0.3))
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for axes_of_row, row in zip(grid, rows, strict=True):
            for axes in axes_of_row[len(row) :]:
                axes.remove()
            for index, (axes, each) in enumerate(zip(axes_of_row, row, strict=False)):
                _heat_map(figure, axes, each, named=index == 0 or [*each.values] != [*row[0].values])
        finish(figure, [], tables if len(maps) == 1 else {})
    return figure


def _in_rows(maps: list[Map]) -> Iterator[list[Map]]:
    for start in range(0, len(maps), COLUMNS):
        yield maps[start : start + COLUMNS]


def _maps(table: pd.DataFrame, part: str) -> Iterator[Map]:
    """The heat maps of a run: four for the checkpoints' elements, four for their squares, then the others."""
    for group, of in {"ckpt_fraction": "elements", "grad_share": "norm(s)^2"}.items():
        for name, style in CKPTS.items():
            yield from _found(f"share of {of}, {style.label}", _layers(table, f"{group}_{part}/", f"/{name}"))
    squares = _layers(table, f"grad_norm_{part}/", "/perturbed") ** 2
    total = squares.sum(axis="columns")
    yield from _found("share of the whole norm(s)^2", squares.div(total.where(total > 0), axis="index"))
    yield from _found("cosine of g and s", _layers(table, f"grad_cosine_{part}/", ""))


def _found(title: str, values: pd.DataFrame) -> Iterator[Map]:
    values = values.dropna(how="all")
    if values.size:
        yield Map(title, values)


def _layers(table: pd.DataFrame, before: str, after: str) -> pd.DataFrame:
    """The columns with such keys, by what stands between, where there are finite values; layer 2 before layer 10."""
    keys = [str(key) for key in table if str(key).startswith(before) and str(key).endswith(after)]
    values = table[keys].rename(columns={key: key[len(before) : len(key) - len(after)] for key in keys})
    values = values.where(values.abs() <= LARGEST).dropna(axis="columns", how="all")
    names: list[str] = sorted(map(str, values), key=_by_number)
    return values[names]


def _by_number(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _heat_map(figure: Figure, axes: Axes, heat_map: Map, named: bool) -> None:
    steps, groups = averaged(heat_map.values)
    values = groups.mean().to_numpy().T
    middles = (steps[1:] + steps[:-1]) / 2
    edges = np.array([steps[0] - 0.5, steps[0] + 0.5]) if len(steps) == 1 else np.array([steps[0], *middles, steps[-1]])
    mesh = axes.pcolormesh(edges, np.arange(len(values) + 1), values, cmap=SEQUENTIAL, rasterized=True)
    figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.08).outline.set_visible(False)
    axes.invert_yaxis()
    every = -(-len(values) // MOST_LABELS)
    names = [str(name) for name in heat_map.values][::every] if named else []
    axes.set_yticks(np.arange(0, len(values), every)[: len(names)] + 0.5, names, fontsize=7, parse_math=False)
    axes.tick_params("y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set(xlabel="step")
    axes.set_title(heat_map.title, parse_math=False, fontsize=8)
    axes.spines[:].set_visible(False)
