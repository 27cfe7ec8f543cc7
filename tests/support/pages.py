"""The code blocks of a page in Markdown."""

import re
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"(?:<!-- ([^>]+) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        mark: what the comment in the line before it says; empty without one.
        language: the word after the fence.
        code: what is inside.
    """

    mark: str
    language: str
    code: str

    @property
    def file(self) -> str:
        """The name of the file that it is, if it is one."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""

    @property
    def lines(self) -> list[str]:
        """The commands of a shell block, without comments; a line that ends in a backslash goes on."""
        lines = re.sub(r"\\\n\s*", "", self.code).splitlines()
        return [line for raw in lines if (line := re.sub(r"(^|\s)#.*", "", raw).strip())]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [Block(*found) for found in BLOCK.findall(page.read_text())]
