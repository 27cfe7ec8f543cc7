"""Docstrings as the site shows them: examples as code, and the public names in them as links."""

import re
from typing import Any

import griffe
from public_names import linked


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value, obj.name)


def rewritten(text: str, owner: str) -> str:
    """The docstring with the sections that griffe knows, fenced code, and links to other public names."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"(\S)::\n\n((?:    .*\n|\n)+)", _fenced, f"{text}\n")
    return linked(text, owner).rstrip("\n")


def _fenced(match: re.Match[str]) -> str:
    code = re.sub(r"^    ", "", match[2].rstrip("\n"), flags=re.MULTILINE)
    return f"{match[1]}:\n\n```python\n{code}\n```\n\n"
