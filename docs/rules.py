"""Write docs/rules.md, the table of all rules, from their signatures and docstrings: python docs/rules.py."""

import inspect
import re
from pathlib import Path

import lightning_same
from lightning_same import Rule

HEAD = """# The rules

Made by `python docs/rules.py` from the code; a test holds that it is up to date. g is the gradient at w, s the gradient
at w + e, d what the optimizer steps with. A rule that remembers has a state in the checkpoint file.

| rule | what it does | remembers | source |
|---|---|---|---|
"""


def main() -> str:
    """Return the page."""
    kinds = [getattr(lightning_same, name) for name in lightning_same.__all__]
    rules = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Rule) and kind is not Rule]
    return HEAD + "".join(map(row, sorted(rules, key=lambda kind: kind.__name__.lower())))


def row(kind: type[Rule]) -> str:
    """Return one line of the table."""
    doc = inspect.getdoc(kind) or ""
    arguments = ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    )
    source = re.search(r"References:\n\s+(.*?)\Z", doc, re.DOTALL)
    cells = [
        f"`{kind.__name__}({arguments})`",
        doc.partition("\n")[0].replace("||", "‖").replace("|", r"\|"),
        "yes" if kind().stateful else "no",
        " ".join(source[1].split()) if source else "",
    ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(main())
