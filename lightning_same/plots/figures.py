"""The figures: fractions, norms, sharpness, effects and any other metric over the steps, of one run or several."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_same.plots.palette import CKPTS, QUANTITIES, REST, Style, method_styles
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
    stacked_areas,
)

Runs = pd.DataFrame | Mapping[str, pd.DataFrame]
"""The metrics of a run, or those of several by their names."""

KINDS = {"": "all samples", "_clean": "clean samples", "_noisy": "noisy samples"}

SHARES = CKPTS | {"rest": REST}


def labelled(labels: Mapping[str, str]) -> dict[str, Style]:
    """A style for each quantity, with its label."""
    return {key: style._replace(label=label) for (key, label), style in zip(labels.items(), QUANTITIES, strict=False)}


GRADIENTS = {"grad_norm/base": "g, at w", "grad_norm/perturbed": "s, at w + e", "grad_norm/step": "d, the step"}
EIGENVALUES = {"sharpness/top_eigenvalue": "largest eigenvalue", "sharpness/bottom_eigenvalue": "smallest eigenvalue"}
PANELS = {
    "norm of the gradients": labelled(GRADIENTS),
    "norm of s in each checkpoint": {f"grad_norm/{name}": style for name, style in CKPTS.items()},
    "cosine of g and s": labelled({"grad_cosine": ""}),
    "norm of the weights": labelled({"weight_norm": ""}),
}
NORMS = {
    "grad_norm/base": "norm of g, at w",
    "grad_norm/perturbed": "norm of s, at w + e",
    "grad_norm/step": "norm of d, the step",
    **{f"grad_norm/{name}": f"norm of s in checkpoint {style.label}" for name, style in CKPTS.items()},
    "grad_cosine": "cosine of g and s",
    "weight_norm": "norm of the weights",
}
EFFECTS = {
    **{
        f"effect on the {of}": {f"ckpt_effect/{name}/{loss}": style for name, style in CKPTS.items()}
        for loss, of in {
            "clean": "clean samples' loss",
            "noisy": "noisy samples' loss",
            "validation": "validation loss",
        }.items()
    },
    "share of s from noisy samples": {f"ckpt_share/{name}/noisy": CKPTS[name] for name in ("ckpt1", "ckpt2")},
}
"""What `CheckpointEffectMonitor` logs. On checkpoints 3 and 4 the share is a ratio of small numbers."""
LOGARITHMIC = ("norm of the gradients", "norm of s in each checkpoint")
RESIDUALS = {
    "sharpness/top_eigenvalue": "sharpness/residual",
    "sharpness/bottom_eigenvalue": "sharpness/bottom_residual",
}


def draw_fractions(runs: Runs) -> Figure:
    """The shares of the four checkpoints over training, stacked; those of clean and noisy samples beside, if logged.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs. Every run has a row of panels,
            or a panel, if none has logged clean and noisy samples.

    Raises:
        KeyError: names the missing keys, if no run has all of them.
        ValueError: if at no step all five shares are numbers from 0 to 1.
    """
    tables = _by_name(runs)
    _require(tables, [f"ckpt_fraction/{name}" for name in SHARES], every=True)
    shares = {(run, kind): _shares(table, kind) for run, table in tables.items() for kind in KINDS}
    shares = {panel: rows for panel, rows in shares.items() if len(rows)}
    if not any(kind == "" for _, kind in shares):
        raise ValueError("the run has logged no finite value of ckpt_fraction/ckpt1 to ckpt_fraction/rest.")
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
            title = ", ".join(filter(None, [name if len(names) > 1 else "", KINDS[kind] if len(kinds) > 1 else ""]))
            axes.set_title(title, parse_math=False)
            if index % columns == 0:
                axes.set_ylabel("share of the gradient's elements")
            if index % columns == columns - 1 or index == len(panels) - 1:
                ends.append((axes, at_end))
        _finish(figure, ends, tables if len(names) == 1 else {})
    return figure


def draw_norms(runs: Runs) -> Figure:
    """The norms of the gradients, of s in each checkpoint and of the weights, and the cosine of g and s.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs: then every norm has a panel,
            with a line for each run. What has not been logged is left out.

    Raises:
        KeyError: names the missing keys, if all of them are missing.
        ValueError: if none of the values is finite.
    """
    tables = _by_name(runs)
    _require(tables, list(NORMS))
    if len(tables) > 1:
        return _compare(tables, NORMS, logarithmic=[key for key in NORMS if key.startswith("grad_norm/")])
    return _panels(tables, PANELS, LOGARITHMIC)


def draw_effects(runs: Runs) -> Figure:
    """What a step of length one along each checkpoint does to the losses, and the share of s from noisy samples.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs: then every checkpoint and loss
            has a panel, with a line for each run. What has not been logged is left out.

    Raises:
        KeyError: names the missing keys, if all of them are missing.
        ValueError: if none of the values is finite.
    """
    tables = _by_name(runs)
    titles = {key: f"{title}: {style.label}" for title, styles in EFFECTS.items() for key, style in styles.items()}
    _require(tables, list(titles))
    return _compare(tables, titles) if len(tables) > 1 else _panels(tables, EFFECTS)


def draw_sharpness(runs: Runs) -> Figure:
    """The largest and the smallest eigenvalue of the Hessian over training, each within the band of its residual.

    Values that had not converged are drawn as crosses.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs: then each of the two
            eigenvalues has a panel, with a line for each run.

    Raises:
        KeyError: names the missing keys.
        ValueError: if none of the values is finite.
    """
    tables = _by_name(runs)
    _require(tables, ["sharpness/top_eigenvalue"])
    if len(tables) > 1:
        return _compare(tables, EIGENVALUES)
    (table,) = tables.values()
    styles = _present(labelled(EIGENVALUES), table)
    _require_values(tables, list(styles))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6, 3.2))
        (axes,) = panel_grid(figure, 1, 1)
        ends = lines(axes, table, styles, RESIDUALS)
        _cross_out(axes, table, styles)
        axes.set_ylabel("eigenvalue of the Hessian")
        show_zero(axes)
        _finish(figure, [(axes, ends)], tables)
    return figure


def draw_metric(runs: Runs, key: str) -> Figure:
    """Any logged metric over the steps.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs, with a line for each.
        key: the name under which it was logged, such as ``"val/loss"``.

    Raises:
        KeyError: if no run has logged it; names keys that are like it.
        ValueError: if none of the values is finite.
    """
    tables = _by_name(runs)
    _require(tables, [key])
    return _compare(tables, {key: key})


def _by_name(runs: Runs) -> dict[str, pd.DataFrame]:
    tables = {"": runs} if isinstance(runs, pd.DataFrame) else dict(runs)
    if not tables:
        raise ValueError("runs must hold at least one run, got none.")
    return tables


def _panels(
    tables: Mapping[str, pd.DataFrame], panels: Mapping[str, Mapping[str, Style]], logarithmic: Sequence[str] = ()
) -> Figure:
    """The panels of a single run, each with the lines that it has logged, under their titles."""
    (table,) = tables.values()
    shown = {title: present for title, styles in panels.items() if (present := _present(styles, table))}
    _require_values(tables, [key for styles in shown.values() for key in styles])
    with mpl.rc_context(RC):
        columns = min(2, len(shown))
        figure = Figure(figsize=(4.8 * columns, 2.6 * -(-len(shown) // columns)))
        ends = []
        for axes, (title, styles) in zip(panel_grid(figure, len(shown), columns), shown.items(), strict=True):
            ends.append((axes, lines(axes, table, styles)))
            axes.set_title(title)
            _scale(axes, next(iter(styles)), logarithmic=title in logarithmic)
        _finish(figure, ends, tables)
    return figure


def _compare(tables: Mapping[str, pd.DataFrame], titles: Mapping[str, str], logarithmic: Iterable[str] = ()) -> Figure:
    """A panel for each key, with a line for each run; names beside the lines of one panel, or else above all panels."""
    keys = [key for key in titles if any(key in table for table in tables.values())]
    _require_values(tables, keys)
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
                    if key in EIGENVALUES:
                        _cross_out(axes, table, {key: styles[name]})
            axes.set_title(titles[key], parse_math=False)
            _scale(axes, key, logarithmic=key in logarithmic)
            ends.append((axes, at_end))
        if len(keys) > 1:
            legend_of_runs(figure, styles)
        _finish(figure, ends if len(keys) == 1 and len(tables) > 1 else [], tables)
    return figure


def _scale(axes: Axes, key: str, logarithmic: bool) -> None:
    """Choose the vertical axis: from zero where zero means something for this key."""
    if logarithmic:
        log_scale(axes)
    elif key == "grad_cosine":
        axes.set_ylim(0 if axes.dataLim.y0 >= 0 else -1, 1)
        show_zero(axes)
    else:
        low, high = axes.dataLim.intervaly
        # Of a metric that is not known, zero is shown where it takes no more than half of the panel.
        if (
            key in EIGENVALUES
            or key == "weight_norm"
            or key.startswith("ckpt_effect/")
            or (low >= 0 and low < high - low)
        ):
            show_zero(axes)


def _cross_out(axes: Axes, table: pd.DataFrame, styles: Mapping[str, Style]) -> None:
    """Cross out the eigenvalues that had not converged."""
    if "sharpness/converged" not in table:
        return
    doubtful = finite(table.loc[table["sharpness/converged"] == 0, list(styles)])
    for key, style in styles.items():
        axes.plot(doubtful.index, doubtful[key], "x", color=style.color, ms=7, label="not converged")
    if len(doubtful):
        axes.legend(*(entries[:1] for entries in axes.get_legend_handles_labels()), frameon=False)


def _finish(figure: Figure, ends: Iterable[tuple[Axes, Ends]], tables: Mapping[str, pd.DataFrame]) -> None:
    """Write the name of a single run above its panels, and the labels beside them."""
    if len(tables) == 1:
        (name,) = tables
        if name:
            figure.suptitle(name, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    figure.draw_without_rendering()
    for axes, at_end in ends:
        label_ends(axes, at_end)


def _present(styles: Mapping[str, Style], table: pd.DataFrame) -> dict[str, Style]:
    return {key: style for key, style in styles.items() if key in table}


def _require(tables: Mapping[str, pd.DataFrame], keys: Sequence[str], every: bool = False) -> None:
    """Refuse runs none of which has logged any of the keys; with `every`, none of which has logged all of them."""
    missing = min(([key for key in keys if key not in table] for table in tables.values()), key=len)
    if len(missing) >= (1 if every else len(keys)):
        raise KeyError(f"the run has not logged {', '.join(missing)}.")


def _require_values(tables: Mapping[str, pd.DataFrame], keys: Sequence[str]) -> None:
    if not any(len(finite(table[[key]])) for table in tables.values() for key in keys if key in table):
        raise ValueError(f"the run has logged no finite value of {', '.join(keys)}.")


def _shares(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The steps at which all five shares were logged and are shares."""
    rows = table.reindex(columns=[f"ckpt_fraction{kind}/{name}" for name in SHARES])
    return rows[((rows >= 0) & (rows <= 1)).all(axis="columns")]


MONITORED = {
    "fractions": (draw_fractions, "CheckpointFractionMonitor", [f"ckpt_fraction/{name}" for name in SHARES]),
    "norms": (draw_norms, "GradientNormMonitor", list(NORMS)),
    "sharpness": (draw_sharpness, "SharpnessMonitor", list(EIGENVALUES)),
    "effects": (draw_effects, "CheckpointEffectMonitor", [key for styles in EFFECTS.values() for key in styles]),
}
"""What the monitors log: how it is drawn, the callback, and its keys."""

RARE = ("effects",)
"""Of these nobody is told that they are missing: they need samples that are known to be noisy."""
