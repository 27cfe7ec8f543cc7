"""The parser of the commands that take few options: an error is one line, without the usage."""

import argparse
from typing import NoReturn

from typing_extensions import override


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")
