"""What the user has named, as text in Markdown and not as Markdown."""

import dataclasses
import re
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Shown = TypeVar("Shown", bound=DataclassInstance)


def escaped(text: str) -> str:
    """A text in one line that Markdown shows as it is. A `|` is left to the table that it stands in."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]!~$])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    line = re.sub(r"(?i)(https?|ftp)://", r"\1&#58;//", line)  # some readers make links of bare addresses
    return re.sub(r"(?i)\bwww\.", "www&#46;", line)


def as_paragraph(text: str) -> str:
    """An escaped text that does not begin as a heading, a list, a rule or a quotation does."""
    return re.sub(r"^(\d+)([.)])|^([-+#=])", lambda mark: f"{mark[1] or ''}\\{mark[2] or mark[3]}", escaped(text))


def as_markdown(shown: "Shown") -> "Shown":
    """The same object, all texts in its fields and in the tables among them escaped."""
    return dataclasses.replace(
        shown, **{field.name: _as_markdown(getattr(shown, field.name)) for field in dataclasses.fields(shown)}
    )


def _as_markdown(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return value.map(lambda cell: escaped(cell) if isinstance(cell, str) else cell)
    return as_paragraph(value) if isinstance(value, str) else value
