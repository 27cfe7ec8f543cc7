"""The public names, and links to them."""

import ast
import re
from pathlib import Path

STUB = ast.parse((Path(__file__).parents[2] / "lightning_same" / "__init__.pyi").read_text())

MODULES = {
    alias.name: node.module
    for node in STUB.body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
"""The module within `lightning_same` that each public name comes from, in the order of the stub."""


def linked(text: str, owner: str) -> str:
    """The text with links to the public names that stand in it as code, but for its owner's."""
    names = "|".join(sorted(MODULES.keys() - {owner}))
    return re.sub(rf"(?<!`)`({names})`(?!`)", r"[`\1`][lightning_same.\1]", text)
