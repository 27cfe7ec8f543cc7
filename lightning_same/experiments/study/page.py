"""The report as one page of HTML that needs no other file."""

import html
import re
from collections.abc import Sequence

from markdown_it import MarkdownIt

from lightning_same.experiments.study.charts import CKPTS, RADII, Charts
from lightning_same.plots.web import METHODS, Chart, figures, legend, page


def report_page(parts: Sequence[str], charts: Charts, title: str) -> str:
    """The page, for wide and for narrow screens, light and dark.

    Args:
        parts: the report's Markdown in pieces, each of which begins with a heading or belongs to the one before. Below
            a heading that has charts these come first.
        charts: of the study.
        title: of the window.
    """
    place = _Places(charts)
    body = "".join(place.html(MarkdownIt("commonmark", {"html": False}).enable("table").render(part)) for part in parts)
    return page(title, body, place.contents, place.drawn, charts.legends)


class _Places:
    """Puts charts below their headings, anchors into headings, and wide tables into boxes that scroll."""

    def __init__(self, charts: Charts) -> None:
        self.charts = charts
        self.contents: dict[str, str] = {}
        self.drawn: list[Chart] = []
        self.has_legend = False
        self.tables = 0

    def html(self, rendered: str) -> str:
        """A piece of the report."""
        heading = re.match(r"<h2>(.*?)</h2>", rendered)
        if heading:
            text = html.unescape(re.sub("<.*?>", "", heading[1]))
            anchor = re.sub(r"\W+", "-", text.lower()).strip("-")
            self.contents[anchor] = text
            rendered = f'<h2 id="{anchor}">{heading[1]}</h2>{rendered[heading.end() :]}'
            rendered = self._with_charts(rendered, self.charts.groups.get(text, []))
        return re.sub("<table>", self._box, rendered).replace("</table>", "</table></div>")

    def _box(self, table: re.Match[str]) -> str:
        """A box that scrolls, by the mouse and by the keyboard, and says which table it is."""
        self.tables += 1
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Table {self.tables}"><table>'

    def _with_charts(self, rendered: str, charts: Sequence[Chart]) -> str:
        if not charts:
            return rendered
        legends = self.charts.legends
        settings, chosen = self.charts.settings, self.charts.chosen
        drawn = "" if self.has_legend else legend(METHODS, "Methods", legends[METHODS], settings, chosen)
        self.has_legend = True
        if any(chart.legend == RADII for chart in charts):
            drawn += legend(RADII, "Methods and their other settings", legends[RADII])
        if any(chart.legend == CKPTS for chart in charts):
            drawn += legend(CKPTS, "Checkpoints, r = s / g", legends[CKPTS], toggles=False)
        drawn += figures(charts, len(self.drawn))
        self.drawn += charts
        # Below the text that introduces them, above the tables.
        at = rendered.find("<table>")
        return f"{rendered}{drawn}" if at < 0 else f"{rendered[:at]}{drawn}{rendered[at:]}"
