"""The colors of the four checkpoints and of the methods, in plots, study reports, notebooks and docs.

The colors are those of Okabe and Ito ("Color Universal Design", 2008), which people with any kind of color vision can
tell apart, and one brown. Dashes, hatches and markers tell the same things apart without color.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Style(NamedTuple):
    """How one checkpoint, method or quantity is drawn.

    Attributes:
        color: of lines, areas and markers, as ``#rrggbb``.
        dashes: lengths of dashes and gaps in units of the line width; empty for a solid line.
        hatch: pattern of an area, in Matplotlib's notation.
        marker: of single points, in Matplotlib's notation.
        label: the text that stands beside it.
    """

    color: str
    dashes: tuple[float, ...] = ()
    hatch: str = ""
    marker: str = "o"
    label: str = ""

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """The dashes as Matplotlib's ``linestyle``."""
        return (0, self.dashes) if self.dashes else "-"

    @property
    def on_dark(self) -> str:
        """The color on a dark page: the same, but for those that would not be seen there."""
        return ON_DARK.get(self.color, self.color)


ON_DARK = {"#000000": "#FFFFFF", "#DDDDDD": "#565B61", "#7F4F24": "#B5804F", "#0072B2": "#2E8FCB"}

CKPTS = {
    "ckpt1": Style("#0072B2", label="1: r > 1"),
    "ckpt2": Style("#56B4E9", (4, 1.6), "////", "s", "2: 0 < r < 1"),
    "ckpt3": Style("#D55E00", (5, 1, 1, 1), r"\\\\", "^", "3: r < -1"),
    "ckpt4": Style("#E69F00", (1, 1.6), "xxxx", "D", "4: -1 < r < 0"),
}
"""The four checkpoints: blue where s has the sign of g, orange where it has the other; dark where s is the larger."""

REST = Style("#DDDDDD", label="rest")
"""The elements in no checkpoint."""

REFERENCES = (Style("#000000"), Style("#000000", (1, 1.6), marker="s"))
"""The method that others are compared with, and a second one."""

METHODS = (
    Style("#009E73", (4, 1.6), marker="s"),
    Style("#0072B2", (9, 2), marker="^"),
    Style("#56B4E9", (1, 1.6), marker="D"),
    Style("#D55E00", (5, 1, 1, 1), marker="v"),
    Style("#E69F00", (5, 1, 1, 1, 1, 1), marker="P"),
    Style("#CC79A7", (2, 1), marker="X"),
    Style("#7F4F24", (9, 2, 2, 2), marker="*"),
)
"""The methods, in the order in which they are named."""

QUANTITIES = (
    Style("#000000"),
    Style("#009E73", (4, 1.6), marker="s"),
    Style("#CC79A7", (1, 1.6), marker="^"),
    Style("#7F4F24", (9, 2, 2, 2), marker="D"),
)
"""Several quantities of one run, such as the norms of g, s and d, in colors that no checkpoint has."""

SEQUENTIAL = "viridis"
"""Matplotlib's colors from small to large in heat maps, which grow lighter and are told apart with any color vision."""


def method_styles(methods: Iterable[str], references: Sequence[str] = ()) -> dict[str, Style]:
    """Styles of methods, in the order in which they are named.

    Args:
        methods: their names. After `len(METHODS)` of them the styles repeat.
        references: the one or two of them, black, that the others are compared with. More than two references are
            methods like the others.

    Returns:
        The style of each method, labelled with its name.
    """
    references = [name for name in dict.fromkeys(references) if len(set(references)) <= len(REFERENCES)]
    others = [name for name in dict.fromkeys(methods) if name not in references]
    styles = dict(zip(references, REFERENCES, strict=False))
    styles |= {name: METHODS[index % len(METHODS)] for index, name in enumerate(others)}
    return {name: styles[name]._replace(label=name) for name in methods}
