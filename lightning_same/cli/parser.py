"""The parser of the commands that take few options: what is wrong and what to do, in two lines, without the usage."""

import argparse
import itertools
import re
import sys
from typing import Any, NoReturn

from typing_extensions import override

from lightning_same.cli.errors import WANTED, did_you_mean, two_lines


class Parser(argparse.ArgumentParser):
    """Reports an error without the usage."""

    @override
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        for word in itertools.takewhile("--".__ne__, words):
            # argparse tells it last, and takes the value that follows for something else before.
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in self._option_string_actions):
                self.error(f"unrecognized arguments: {name}")
        return super().parse_known_args(words, namespace)

    @override
    def error(self, message: str) -> NoReturn:
        missing = re.match(r"the following arguments are required: (.*)", message)
        said = (
            f"{missing[1]} is missing.\n`{self.prog} --help` explains it." if missing else argparse_error(message, self)
        )
        what, _, to_do = (said or message).partition("\n")
        self.exit(2, two_lines(f"{self.prog}: error: ", what, to_do) + "\n")


def argparse_error(message: str, parser: argparse.ArgumentParser) -> str:
    """What is wrong, out of argparse's message; on a second line, what to do. Empty if the message is another's."""
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown:
        word = unknown[1].partition("=")[0]
        lists = f"`{parser.prog} --help` lists the options."
        if not word.startswith("-"):
            return f"{unknown[1]!r} is not expected here.\n{lists}"
        return f"there is no option {word}.\n{did_you_mean(word, parser._option_string_actions)} {lists}"
    argument = re.match(r"argument (?:-\w/)?(\S+): (.*)", message)
    if not argument:
        return ""
    name, said = argument.groups()
    wrong = re.match(r"invalid (\w+) value: (.*)", said)
    if said.startswith("expected "):
        return f"{name} needs a value.\n`{parser.prog} --help` explains it."
    if wrong:
        return f"{name} must be {WANTED.get(wrong[1], wrong[1])}, got {wrong[2]}."
    choice = re.match(r"invalid choice: '(.*?)' \(choose from (.*)\)", said)
    if choice:
        choices = [each.strip("' ") for each in choice[2].split(",")]
        return f"{name} must be {' or '.join(choices)}, got {choice[1]!r}.\n{did_you_mean(choice[1], choices)}"
    return f"{name} {said}." if said.startswith("must be") else f"{name}: {said}"
