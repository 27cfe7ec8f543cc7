"""The figures of one run: checkpoint fractions, norms and sharpness over the steps."""

from collections.abc import Iterable, Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from lightning_same.plots.palette import CKPTS, QUANTITIES, REST, Style
from lightning_same.plots.panels import RC, finite, label_ends, lines, log_scale, stacked_areas

SHARES = CKPTS | {"rest": REST}


def labelled(labels: Mapping[str, str]) -> dict[str, Style]:
    """A style for each quantity, with its label."""
    return {key: style._replace(label=label) for (key, label), style in zip(labels.items(), QUANTITIES, strict=False)}


GRADIENTS = {"grad_norm/base": "g, at w", "grad_norm/perturbed": "s, at w + e", "grad_norm/step": "d, the step"}
EIGENVALUES = {"sharpness/top_eigenvalue": "largest", "sharpness/bottom_eigenvalue": "smallest"}
PANELS = {
    "norm of the gradients": labelled(GRADIENTS),
    "norm of s in each checkpoint": {f"grad_norm/{name}": style for name, style in CKPTS.items()},
    "cosine of g and s": labelled({"grad_cosine": ""}),
    "norm of the weights": labelled({"weight_norm": ""}),
}
LOGARITHMIC = ("norm of the gradients", "norm of s in each checkpoint")
RESIDUALS = {
    "sharpness/top_eigenvalue": "sharpness/residual",
    "sharpness/bottom_eigenvalue": "sharpness/bottom_residual",
}


def draw_fractions(table: pd.DataFrame) -> Figure:
    """The shares of the four checkpoints over training, stacked; those of clean and noisy samples beside, if logged.

    Args:
        table: what `read_metrics` returns.

    Raises:
        KeyError: names the missing keys.
        ValueError: if at no step all five shares are numbers from 0 to 1.
    """
    kinds = {"": "all samples", "_clean": "clean samples", "_noisy": "noisy samples"}
    _require(table, [f"ckpt_fraction/{name}" for name in SHARES])
    shares = {kind: table.filter(items=[f"ckpt_fraction{kind}/{name}" for name in SHARES]) for kind in kinds}
    shares = {kind: _valid_shares(rows) for kind, rows in shares.items() if len(rows.columns) == len(SHARES)}
    _require_values(shares[""], *(f"ckpt_fraction/{name}" for name in SHARES))
    shares = {kind: rows for kind, rows in shares.items() if len(rows)}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(2.4 + 3.4 * len(shares), 3.2))
        row = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
        for axes, (kind, rows) in zip(row, shares.items(), strict=True):
            ends = stacked_areas(axes, rows, list(SHARES.values()))
            axes.set_xlabel("step")
            axes.set_title(kinds[kind] if len(shares) > 1 else "")
        row[0].set_ylabel("share of the gradient's elements")
        figure.draw_without_rendering()
        label_ends(row[-1], ends)
    return figure


def draw_norms(table: pd.DataFrame) -> Figure:
    """The norms of the gradients, of s in each checkpoint and of the weights, and the cosine of g and s.

    Args:
        table: what `read_metrics` returns; what is not in it is left out.

    Raises:
        KeyError: names the missing keys, if all of them are missing.
        ValueError: if none of the values is finite.
    """
    panels = {title: _present(styles, table) for title, styles in PANELS.items()}
    panels = {title: styles for title, styles in panels.items() if styles}
    keys = [key for styles in (panels or PANELS).values() for key in styles]
    if not panels:
        _require(table, keys)
    _require_values(table[keys], *keys)
    with mpl.rc_context(RC):
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(4.8 * columns, 2.6 * rows))
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        ends = []
        for axes, (title, styles) in zip(grid.flat, panels.items(), strict=False):
            ends.append(lines(axes, table, styles))
            if title in LOGARITHMIC:
                log_scale(axes)
            axes.set(title=title, xlabel="step")
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.draw_without_rendering()
        for axes, panel_ends in zip(grid.flat, ends, strict=False):
            label_ends(axes, panel_ends)
    return figure


def draw_sharpness(table: pd.DataFrame) -> Figure:
    """The largest and the smallest eigenvalue of the Hessian over training, each within the band of its residual.

    Values that had not converged are drawn as crosses.

    Args:
        table: what `read_metrics` returns.

    Raises:
        KeyError: names the missing keys.
        ValueError: if none of the values is finite.
    """
    _require(table, ["sharpness/top_eigenvalue"])
    styles = _present(labelled(EIGENVALUES), table)
    _require_values(table[list(styles)], *styles)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6, 3.2))
        axes = figure.subplots()
        ends = lines(axes, table, styles, RESIDUALS)
        if "sharpness/converged" in table:
            doubtful = finite(table.loc[table["sharpness/converged"] == 0, list(styles)])
            for key, style in styles.items():
                axes.plot(doubtful.index, doubtful[key], "x", color=style.color, ms=7, label="not converged")
            if len(doubtful):
                axes.legend(*(entries[:1] for entries in axes.get_legend_handles_labels()), frameon=False)
        if axes.get_ylim()[0] < 0:
            axes.axhline(0, color="black", lw=0.6)
        axes.set(xlabel="step", ylabel="eigenvalue of the Hessian")
        figure.draw_without_rendering()
        label_ends(axes, ends)
    return figure


def _present(styles: Mapping[str, Style], table: pd.DataFrame) -> dict[str, Style]:
    return {key: style for key, style in styles.items() if key in table}


def _require(table: pd.DataFrame, keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in table]
    if missing:
        raise KeyError(f"the run has not logged {', '.join(missing)}.")


def _require_values(values: pd.DataFrame, *keys: str) -> None:
    if not any(len(finite(values[[key]])) for key in values):
        raise ValueError(f"the run has logged no finite value of {', '.join(keys)}.")


def _valid_shares(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[((rows >= 0) & (rows <= 1)).all(axis="columns")]
