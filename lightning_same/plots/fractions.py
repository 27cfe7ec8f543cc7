"""Stacked areas: how the gradient's elements, and its length, are spread over the four checkpoints."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from lightning_same.plots.comparison import Runs, by_name, finish, require
from lightning_same.plots.palette import CKPTS, REST
from lightning_same.plots.panels import RC, panel_grid, stacked_areas

KINDS = {"": "all samples", "_clean": "clean samples", "_noisy": "noisy samples"}
"""What a group of keys is of, by what is added to its first part."""

SHARES = CKPTS | {"rest": REST}


def draw_fractions(runs: Runs) -> Figure:
    """The shares of the four checkpoints over training, stacked; those of clean and noisy samples beside, if logged.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs. Every run has a row of panels,
            or a panel, if none has logged clean and noisy samples.

    Raises:
        KeyError: names the missing keys, if no run has all of them.
        ValueError: if at no step all five shares are numbers from 0 to 1.
    """
    return _areas(runs, "ckpt_fraction", "share of the gradient's elements")


def draw_shares(runs: Runs) -> Figure:
    """The same for the checkpoints' shares of the squared norm of s: `draw_fractions`, weighted by length.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs.

    Raises:
        KeyError: names the missing keys, if no run has all of them.
        ValueError: if at no step all five shares are numbers from 0 to 1.
    """
    return _areas(runs, "grad_share", "share of norm(s)^2")


def _areas(runs: Runs, group: str, title: str) -> Figure:
    tables = by_name(runs)
    require(tables, [f"{group}/{name}" for name in SHARES], every=True)
    shares = {(run, kind): _shares(table, f"{group}{kind}") for run, table in tables.items() for kind in KINDS}
    shares = {panel: rows for panel, rows in shares.items() if len(rows)}
    if not any(kind == "" for _, kind in shares):
        raise ValueError(f"the run has logged no finite value of {group}/ckpt1 to {group}/rest.")
    kinds = [kind for kind in KINDS if any(kind == shown for _, shown in shares)]
    names = [name for name in tables if any(name == run for run, _ in shares)]
    columns = len(kinds) if len(kinds) > 1 else min(3, len(names))
    panels = [(name, kind) for name in names for kind in kinds]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(2.4 + 3.4 * columns, 3.2 * -(-len(panels) // columns)))
        ends = []
        for index, (axes, panel) in enumerate(zip(panel_grid(figure, len(panels), columns), panels, strict=True)):
            name, kind = panel
            if panel not in shares:
                axes.remove()
                continue
            at_end = stacked_areas(axes, shares[panel], list(SHARES.values()))
            titles = [name if len(names) > 1 else "", KINDS[kind] if len(kinds) > 1 else ""]
            axes.set_title(", ".join(filter(None, titles)), parse_math=False)
            if index % columns == 0:
                axes.set_ylabel(title)
            if index % columns == columns - 1 or index == len(panels) - 1:
                ends.append((axes, at_end))
        finish(figure, ends, tables if len(names) == 1 else {})
    return figure


def _shares(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """The steps at which all five shares were logged and are shares."""
    rows = table.reindex(columns=[f"{group}/{name}" for name in SHARES])
    return rows[((rows >= 0) & (rows <= 1)).all(axis="columns")]
