"""A page of charts in one file: methods toggled by the legend, values on hover, light and dark, no network.

The charts are drawn in the browser by Vega-Lite, whose code stands in the page. What is drawn is data in JSON; nothing
of it is ever read as HTML.
"""

import functools
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from lightning_same.plots.palette import Style

Legends = Mapping[str, Mapping[str, Style]]
"""The styles of each legend, by the names that series have; `METHODS` is the one at the head of the charts."""

METHODS = "methods"

SHAPES = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "P": "cross"}
"""Vega's names of Matplotlib's markers."""

PATHS = {"X": "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z"}

STAR = "M0,-1L.3,-.35L1,-.3L.45,.15L.6,.85L0,.45L-.6,.85L-.45,.15L-1,-.3L-.3,-.35Z"

DIGITS = 4
"""Significant digits of what is drawn: more cannot be seen, and would make the page larger."""


class Chart(NamedTuple):
    """A chart of a page.

    Attributes:
        name: of the file when it is saved.
        title: what stands above it.
        caption: what it shows, in a sentence.
        legend: the legend whose names its series have.
        spec: what `page.js` draws: ``kind`` ("lines", "path", "points", "areas" or "intervals"), the axes ``x`` and
            ``y``, ``at``, which is what a point is called by, and ``series``.
    """

    name: str
    title: str
    caption: str
    legend: str
    spec: dict[str, Any]


@functools.cache
def vega() -> str:
    """The code of Vega, Vega-Lite and Vega-Embed.

    Raises:
        ModuleNotFoundError: names the package that has it.
    """
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Charts in a page need vl-convert-python: pip install 'lightning-same[plots]'.", name=error.name
        ) from error
    code: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the snippet has a default
    return code


def numbers(values: Iterable[float]) -> list[float | None]:
    """Values as JSON has them: rounded, and null for what is not finite."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in map(float, values)]


def figures(charts: Sequence[Chart], first: int = 0) -> str:
    """Places for charts, as HTML.

    Args:
        charts: what goes there.
        first: how many charts the page has before these.
    """
    places = [
        f'<figure data-chart="{number}"><figcaption><strong>{html.escape(chart.title)}</strong>'
        f'{html.escape(chart.caption)}</figcaption><div class="plot" role="group"'
        f' aria-label="{html.escape(f"{chart.title}. {chart.caption}".rstrip())}"></div></figure>'
        for number, chart in enumerate(charts, first)
    ]
    return f'<div class="charts">{"".join(places)}</div>' if places else ""


def legend(
    name: str,
    title: str,
    styles: Mapping[str, Style],
    settings: Sequence[str] = (),
    chosen: str | None = None,
    toggles: bool = True,
) -> str:
    """A legend as HTML: boxes that switch series on and off, and a choice of the setting, if there are several.

    Args:
        name: of the legend.
        title: what its entries are.
        styles: its entries.
        settings: what can be chosen; every series without a setting is always shown.
        chosen: the setting that is shown first. Default: the first one.
        toggles: whether entries can be switched off.
    """
    entries = []
    for entry, style in styles.items():
        text = f"{_swatch(style)}<span>{html.escape(entry)}</span>"
        box = f'<input type="checkbox" checked data-legend="{html.escape(name)}" value="{html.escape(entry)}">'
        entries.append(f"<label>{box}{text}</label>" if toggles else f"<label>{text}</label>")
    if toggles and len(entries) > 2:
        entries.append('<button type="button" value="all">all</button><button type="button" value="none">none</button>')
    if settings:
        options = "".join(
            f"<option{' selected' if one == chosen else ''}>{html.escape(one)}</option>" for one in settings
        )
        select = f'<label for="setting">Setting</label><select id="setting">{options}</select>'
        entries.insert(0, f'<span class="setting">{select}</span>')
    sticky = " sticky" if toggles else ""
    return f'<fieldset class="legend{sticky}"><legend>{html.escape(title)}</legend>{"".join(entries)}</fieldset>'


def page(title: str, body: str, contents: Mapping[str, str], charts: Sequence[Chart], legends: Legends) -> str:
    """A page of HTML that needs no other file.

    Args:
        title: of the window.
        body: HTML, with the places of `figures` and the legends.
        contents: the headings of the table of contents by their anchors.
        charts: all charts, in the order of their places.
        legends: of the charts.
    """
    entries = "".join(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for anchor, text in contents.items())
    nav = f'<nav aria-label="Contents"><details open><summary>Contents</summary><ul>{entries}</ul></details></nav>'
    data = {
        "legends": {name: [_style(*entry) for entry in styles.items()] for name, styles in legends.items()},
        "charts": [{"file": chart.name, "legend": chart.legend, **chart.spec} for chart in charts],
    }
    # "<" would end the element, as in a method that is called </script>.
    content = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    own = files("lightning_same.plots")
    library = vega().replace("</script", "<\\/script") if charts else ""
    scripts = (
        f'<script type="application/json" id="charts">{content}</script>\n'
        f"<script>{library}</script>\n"
        f"<script>{own.joinpath('page.js').read_text(encoding='utf-8')}</script>\n"
        if charts
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{own.joinpath('page.css').read_text(encoding='utf-8')}</style>\n"
        f'</head>\n<body>\n<div class="page">\n{nav if entries else ""}\n<main>\n{body}\n'
        "<noscript><p>The charts need JavaScript.</p></noscript>\n</main>\n</div>\n"
        f"{scripts}</body>\n</html>\n"
    )


def _style(name: str, style: Style) -> dict[str, Any]:
    return {
        "name": name,
        "color": style.color,
        "dark": style.on_dark,
        "dash": [round(1.5 * length, 1) for length in style.dashes] or [1, 0],
        "shape": (SHAPES | PATHS).get(style.marker, STAR),
    }


def _swatch(style: Style) -> str:
    dashes = " ".join(f"{2 * length:g}" for length in style.dashes)
    return (
        f'<svg width="28" height="10" aria-hidden="true" style="--swatch:{style.color};--swatch-dark:{style.on_dark}">'
        f'<line x1="0" y1="5" x2="28" y2="5" stroke="currentColor" stroke-width="4" stroke-dasharray="{dashes}"/></svg>'
    )
