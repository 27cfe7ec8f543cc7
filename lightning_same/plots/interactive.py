"""What `figures` draws, as one page for a browser: runs switched on and off by the legend, values on hover."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lightning_same.plots.fractions import SHARES
from lightning_same.plots.norms import NORMS
from lightning_same.plots.palette import method_styles
from lightning_same.plots.panels import MAX_POINTS, finite
from lightning_same.plots.sharpness import TITLES as SHARPNESS
from lightning_same.plots.web import METHODS, Chart, figures, legend, numbers, page

CKPTS = "ckpts"

STEP = {"title": "step", "plain": True}


THINNED = "Where more steps were logged than can be seen, a point is the mean of several, and the band spans them."


def html_page(tables: Mapping[str, pd.DataFrame], keys: Sequence[str] = ()) -> str:
    """A page that draws runs, in one file.

    Args:
        tables: what `read_metrics` returns, by the names of the runs.
        keys: what to draw, a chart for each; by default what the monitors have logged.

    Raises:
        ValueError: if no run has a finite value of any of them.
    """
    titles = {key: key for key in keys} if keys else {**NORMS, **SHARPNESS}
    charts = [] if keys else [chart for name, table in tables.items() for chart in _shares(name, table)]
    shares = len(charts)
    charts += [chart for key, title in titles.items() for chart in _over_steps(key, title, tables)]
    if not charts:
        raise ValueError(f"{', '.join(tables)}: there is no finite value to draw.")
    legends = {
        METHODS: method_styles(tables, list(tables)[:1]),
        CKPTS: {style.label: style for style in SHARES.values()},
    }
    body = "<h1>" + ("Runs" if len(tables) > 1 else "Run") + "</h1>"
    body += legend(METHODS, "Runs", legends[METHODS], toggles=len(tables) > 1)
    if shares:
        body += '<h2 id="checkpoints">The four checkpoints</h2>'
        body += legend(CKPTS, "Checkpoints, r = s / g", legends[CKPTS], toggles=False) + figures(charts[:shares])
    if charts[shares:]:
        thinned = any("low" in one for chart in charts[shares:] for one in chart.spec["series"])
        body += '<h2 id="over-the-steps">Over the steps</h2>' + (f"<p>{THINNED}</p>" if thinned else "")
        body += figures(charts[shares:], shares)
    contents = {"checkpoints": "The four checkpoints"} if shares else {}
    contents |= {"over-the-steps": "Over the steps"} if charts[shares:] else {}
    return page(", ".join(tables), body, contents, charts, legends)


def _over_steps(key: str, title: str, tables: Mapping[str, pd.DataFrame]) -> list[Chart]:
    series: list[dict[str, Any]] = []
    lowest, highest = np.inf, -np.inf
    for name, table in tables.items():
        values = finite(table[[key]]) if key in table else table.iloc[:0]
        if len(values):
            groups = _thinned(values)
            one = {
                "name": name,
                "x": groups["step"].mean().round().astype(int).tolist(),
                "y": numbers(groups[key].mean()),
            }
            if len(values) > MAX_POINTS:
                one |= {"low": numbers(groups[key].min()), "high": numbers(groups[key].max())}
            series.append(one)
            lowest, highest = min(lowest, values[key].min()), max(highest, values[key].max())
    if not series:
        return []
    log = key.startswith("grad_norm/") and bool(lowest > 0)
    # Of a metric that is not known, zero is shown where it takes no more than half of the chart.
    known = key in SHARPNESS or key in ("weight_norm", "grad_cosine")
    zero = not log and (known or bool(0 <= lowest < highest - lowest))
    spec = {
        "kind": "lines",
        "x": STEP,
        "y": {"title": title, "log": log, "zero": zero},
        "at": "step",
        "of": "run",
        "band": ["lowest", "highest"],
        "series": series,
    }
    return [Chart(key.replace("/", "-"), title, "", METHODS, spec)]


def _shares(name: str, table: pd.DataFrame) -> list[Chart]:
    keys = {f"ckpt_fraction/{ckpt}": style.label for ckpt, style in SHARES.items()}
    if not set(keys) <= set(table) or len(finite(table[list(keys)])) < 2:  # an area needs two edges
        return []
    means = _thinned(finite(table[list(keys)])).mean()
    steps = means["step"].round().astype(int).tolist()
    spec = {
        "kind": "areas",
        "x": STEP,
        "y": {"title": "share of the elements", "percent": True},
        "at": "step",
        "owner": {"name": name, "setting": None, "legend": METHODS},
        "series": [{"name": label, "x": steps, "y": numbers(means[key])} for key, label in keys.items()],
    }
    return [Chart("fractions", name, "Shares of the gradient's elements.", CKPTS, spec)]


def _thinned(values: pd.DataFrame) -> "pd.api.typing.DataFrameGroupBy[Any, Any]":
    """Neighboring rows as groups, at most `MAX_POINTS`."""
    group = np.arange(len(values)) * MAX_POINTS // max(MAX_POINTS, len(values))
    return values.reset_index(names="step").groupby(group)
