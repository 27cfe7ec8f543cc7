"""Figures of one run or of several beside each other: what they have in common, and any metric over the steps."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_same.plots.palette import QUANTITIES, Style, method_styles
from lightning_same.plots.panels import (
    RC,
    Ends,
    finite,
    label_ends,
    legend_of_runs,
    lines,
    log_scale,
    panel_grid,
    show_zero,
)

Runs = pd.DataFrame | Mapping[str, pd.DataFrame]
"""The metrics of a run, or those of several by their names."""

Panels = Mapping[str, Mapping[str, Style]]
"""The lines of each panel, by its title: the style of each key."""

RESIDUALS = {
    "sharpness/top_eigenvalue": "sharpness/residual",
    "sharpness/bottom_eigenvalue": "sharpness/bottom_residual",
}
"""Of what is known to within a residual, the key of the residual."""

FROM_ZERO = frozenset(
    {
        "weight_norm",
        *RESIDUALS,
        "sharpness/adaptive_top_eigenvalue",
        "sharpness/gradient_curvature",
        "sharpness/ascent_curvature",
        "sharpness/ascent_gap",
        "sharpness/worst_case",
        "sharpness/average_case",
    }
)
"""Keys whose axis reaches zero, because zero means something."""

UNIT = frozenset({"sharpness/ascent_alignment", "sharpness/step_alignment"})
"""Keys whose axis is from 0 to 1."""


def labelled(labels: Mapping[str, str]) -> dict[str, Style]:
    """A style for each quantity, with its label."""
    return {key: style._replace(label=label) for (key, label), style in zip(labels.items(), QUANTITIES, strict=False)}


def draw_metric(runs: Runs, key: str) -> Figure:
    """Any logged metric over the steps.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs, with a line for each.
        key: the name under which it was logged, such as ``"val/loss"``.

    Raises:
        KeyError: if no run has logged it; names keys that are like it.
        ValueError: if none of the values is finite.
    """
    tables = by_name(runs)
    require(tables, [key])
    return compare(tables, {key: key})


def by_name(runs: Runs) -> dict[str, pd.DataFrame]:
    """The tables by the names of their runs."""
    tables = {"": runs} if isinstance(runs, pd.DataFrame) else dict(runs)
    if not tables:
        raise ValueError("runs must hold at least one run, got none.")
    return tables


def draw_panels(table: pd.DataFrame, name: str, panels: Panels, logarithmic: Iterable[str] = ()) -> Figure:
    """The panels of one run, in two columns.

    Args:
        table: the run.
        name: its name, above the panels; may be empty.
        panels: at least one with a key that the run has logged; keys and panels without values are left out.
        logarithmic: titles of the panels with a logarithmic axis.

    Raises:
        ValueError: if none of the values is finite.
    """
    found = {title: {key: style for key, style in styles.items() if key in table} for title, styles in panels.items()}
    found = {title: styles for title, styles in found.items() if styles}
    require_values({name: table}, [key for styles in found.values() for key in styles])
    with mpl.rc_context(RC):
        columns = min(2, len(found))
        figure = Figure(figsize=(6, 3.2) if len(found) == 1 else (4.8 * columns, 2.6 * -(-len(found) // columns)))
        ends = []
        for axes, (title, styles) in zip(panel_grid(figure, len(found), columns), found.items(), strict=True):
            ends.append((axes, lines(axes, table, styles, RESIDUALS)))
            cross_out(axes, table, styles)
            axes.set_title(title)
            set_scale(axes, next(iter(styles)), logarithmic=title in logarithmic)
        finish(figure, ends, {name: table})
    return figure


def compare(tables: Mapping[str, pd.DataFrame], titles: Mapping[str, str], logarithmic: Iterable[str] = ()) -> Figure:
    """A panel for each key, with a line for each run; names beside the lines of one panel, or else above all panels."""
    keys = [key for key in titles if any(key in table for table in tables.values())]
    require_values(tables, keys)
    styles = method_styles(tables, references=list(tables)[:1])
    with mpl.rc_context(RC):
        columns = min(3, len(keys))
        rows = -(-len(keys) // columns)
        figure = Figure(figsize=(6, 3.2) if len(keys) == 1 else (3.6 * columns, 2.5 * rows + 0.3))
        ends = []
        for axes, key in zip(panel_grid(figure, len(keys), columns), keys, strict=True):
            at_end: Ends = {}
            for name, table in tables.items():
                if key in table:
                    at_end |= lines(axes, table, {key: styles[name]}, RESIDUALS, compared=len(tables) > 1)
                    cross_out(axes, table, {key: styles[name]})
            axes.set_title(titles[key], parse_math=False)
            set_scale(axes, key, logarithmic=key in logarithmic)
            ends.append((axes, at_end))
        if len(keys) > 1:
            legend_of_runs(figure, styles)
        finish(figure, ends if len(keys) == 1 and len(tables) > 1 else [], tables)
    return figure


def set_scale(axes: Axes, key: str, logarithmic: bool) -> None:
    """Choose the vertical axis: from zero where zero means something for this key."""
    if logarithmic:
        log_scale(axes)
    elif key == "grad_cosine":
        axes.set_ylim(0 if axes.dataLim.y0 >= 0 else -1, 1)
        show_zero(axes)
    elif key in UNIT:
        axes.set_ylim(0, 1)
    else:
        low, high = axes.dataLim.intervaly
        # Of a metric that is not known, zero is shown where it takes no more than half of the panel.
        if key in FROM_ZERO or key.startswith("ckpt_effect/") or (low >= 0 and low < high - low):
            show_zero(axes)


def cross_out(axes: Axes, table: pd.DataFrame, styles: Mapping[str, Style]) -> None:
    """Cross out the eigenvalues that had not converged."""
    eigenvalues = {key: style for key, style in styles.items() if key in RESIDUALS}
    if "sharpness/converged" not in table or not eigenvalues:
        return
    doubtful = finite(table.loc[table["sharpness/converged"] == 0, list(eigenvalues)])
    for key, style in eigenvalues.items():
        axes.plot(doubtful.index, doubtful[key], "x", color=style.color, ms=7, label="not converged")
    if len(doubtful):
        axes.legend(*(entries[:1] for entries in axes.get_legend_handles_labels()), frameon=False)


def finish(figure: Figure, ends: Iterable[tuple[Axes, Ends]], tables: Mapping[str, pd.DataFrame]) -> None:
    """Write the name of a single run above its panels, and the labels beside them."""
    if len(tables) == 1:
        (name,) = tables
        if name:
            figure.suptitle(name, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    figure.draw_without_rendering()
    for axes, at_end in ends:
        label_ends(axes, at_end)


def require(tables: Mapping[str, pd.DataFrame], keys: Sequence[str], every: bool = False) -> None:
    """Refuse runs none of which has logged any of the keys; with `every`, none of which has logged all of them."""
    missing = min(([key for key in keys if key not in table] for table in tables.values()), key=len)
    if len(missing) >= (1 if every else len(keys)):
        raise KeyError(f"the run has not logged {', '.join(missing)}.")


def require_values(tables: Mapping[str, pd.DataFrame], keys: Sequence[str]) -> None:
    """Refuse runs that have logged no finite value of the keys."""
    if not any(len(finite(table[[key]])) for table in tables.values() for key in keys if key in table):
        raise ValueError(f"the run has logged no finite value of {', '.join(keys)}.")
