"""How every command ends: well, in one line that says what to change, or in one that says where the traceback is."""

import contextlib
import difflib
import linecache
import operator
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator

from typing_extensions import override

BAD_INPUT = 2
"""Exit code of what the person who gave the command can change."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

UNFORESEEN = 70
"""Exit code of an error that nobody foresaw; ``EX_SOFTWARE`` of sysexits.h."""


class UserError(Exception):
    """What the person who gave the command has to know or to change; shown without a traceback.

    Args:
        what: is wrong, in one line.
        to_do: about it, shown in a line of its own.
    """

    def __init__(self, what: object, to_do: str = "") -> None:
        super().__init__(what, to_do)
        self.what, self.to_do = str(what), to_do

    @override
    def __str__(self) -> str:
        return f"{self.what} {self.to_do}".rstrip()


def one_line(text: object, limit: int = 2000) -> str:
    """A message without line breaks, cut in its middle where it is longer than ``limit`` characters."""
    words = " ".join(str(text).split())
    half = limit // 2
    return words if len(words) <= limit else f"{words[:half]} [...] {words[-half:]}"


def two_lines(start: str, what: object, to_do: object = "") -> str:
    """A line that says what is wrong, and below it one that says what to do, if that is known."""
    return f"{start}{one_line(what)}" + (f"\n       {one_line(to_do)}" if to_do else "")


WANTED = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "NoneType": "null",
    "PositiveInt": "a whole number > 0",
    "PositiveFloat": "a number > 0",
}
"""The types of options as they are told."""

WHERE = "Modules are searched for in the folder where the command is given, and among the installed ones."


def parser_error(message: str) -> str:
    """What is wrong, out of jsonargparse's message with all types of an option; on a second line, what to do."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    keys: list[str] = []
    owner = ""
    for line in lines:
        key = re.match(r'Parser key "(.+?)":\s*(.*)', line)
        problem = re.match(r"Problem with given class_path '([^']+)':\s*(.*)", line)
        if key:
            keys.append(key[1])
        if problem:
            owner = problem[1]
        said = key[2] if key else problem[2] if problem else line
        wrong = re.match(r"Expected an? <class '(\w+)'>\. Got value: (.*)", said)
        if keys and wrong:
            return f"--{'.'.join(keys)} must be {WANTED.get(wrong[1], wrong[1])}, got {wrong[2][:100]!r}."
        choice = re.match(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", said)
        if keys and choice:
            return f"--{'.'.join(keys)} must be one of {choice[1]}, got {choice[2][:100]!r}."
        # With other types beside it, the value is told at the end of the message.
        bounded = re.match(r"Not of type (\w+): (?:(\S+) does not conform|.*: '(.*)'$)", said)
        if keys and bounded and "Given value:" not in message:
            got = bounded[2] or bounded[3]
            return f"--{'.'.join(keys)} must be {WANTED.get(bounded[1], bounded[1])}, got {got[:100]!r}."
        if owner and said and not re.match(r"Does not validate|Subtypes:|Errors:|Given value|Expected an? ", said):
            said = said.rstrip(".")
            to_do = _way_out(said, ".".join(keys), owner)
            return f"--{'.'.join(keys)}: {owner}: {one_line(said, 500)}." + (f"\n{to_do}" if to_do else "")
        # What a class of this package says of an argument, among what the other types of the option would be.
        if re.match(r"\w+: `\w+` must be ", line):
            return f"--{'.'.join(keys)}: {one_line(line, 500)}" if keys else one_line(line, 500)
    missing = re.search(r"the following arguments are required: (?:\w+\.)?(\w+)$", message)
    if missing:
        return (
            f"--{missing[1]} is missing.\nGive it, or a configuration by --config; `lightning-same configs` lists some."
        )
    # Of types within types, the innermost are told first: they are what the last key may be.
    innermost = message.partition("Given value:")[0]
    kinds = re.findall(r"(?:Expected an? <class '|Not of type )(\w+)", innermost)
    numbers = {"int", "float", "PositiveInt", "PositiveFloat"} & {*kinds}
    given = re.search(r"^\s*Given value: (.*)", message, re.MULTILINE)
    base = re.search(r"Import path does not correspond to a subclass of (\w+)", message)
    if keys and given and base:
        return f"--{'.'.join(keys)}: {given[1][:100]} is no {base[1]}.\nGive a class that derives from it."
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    if keys and unknown and not numbers:
        return f"--{'.'.join(keys)}: there is no class {unknown[1]!r}.\nName its module, too: module.Class. {WHERE}"
    subtypes = re.findall(r"^\s*Subtypes: (.*)", innermost, re.MULTILINE)
    choices = re.findall(r"typing\.Literal\[([^\]]*)\]", subtypes[-1] if subtypes else "")
    if choices:
        kinds = [f"one of {', '.join(choices)}", *dict.fromkeys(kinds)]
    if keys and kinds and given:
        wanted = " or ".join(WANTED.get(kind, kind) for kind in kinds)
        return f"--{'.'.join(keys)} must be {wanted}, got {given[1][:100]!r}."
    return one_line(message, 500)


def _way_out(said: str, key: str, owner: str) -> str:
    """What to do about an error of importing a class, or of its arguments; empty if that is not known."""
    if said.startswith("No module named"):
        return WHERE
    if re.match(r"Option '\w+' is not accepted|the following arguments are required", said):
        return f"`--{key}.help {owner}` shows its arguments."
    # The second is what a module that loads its parts when they are asked for says.
    lacks = re.match(r"module '([\w.]+)' has no attribute '(\w+)'|No ([\w.]+) attribute (\w+)", said)
    module = sys.modules.get(lacks[1] or lacks[3]) if lacks else None
    return did_you_mean(lacks[2] or lacks[4], dir(module)) if lacks and module else ""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The choice that is nearest to a mistyped word, as a question; empty if none is near."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f"Did you mean {close[0]}?" if close else ""


def os_error(error: OSError) -> str:
    """An operating system's error with the file that it is about."""
    why = error.strerror or str(error) or type(error).__name__
    return f"{os.fspath(error.filename)}: {why}." if isinstance(error.filename, str | os.PathLike) else f"{why}."


def root(error: BaseException) -> BaseException:
    """The error that began a chain of errors."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


_REFUSALS = ("ValueError", "TypeError", "KeyError", "RuntimeError", "ModuleNotFoundError", "MisconfigurationException")
_PACKAGES = ("lightning_same", "lightning")


def is_a_refusal(error: BaseException) -> bool:
    """Whether this package or Lightning has refused what it was given: a ``raise`` of theirs, with a reason.

    Not where code of the user's own stands between the command and the ``raise``: the traceback leads there.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or type(error).__name__ not in _REFUSALS or not str(error).strip():
        return False
    names = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    ours = [name.partition(".")[0] in _PACKAGES for name in names]
    files = [frame.f_code.co_filename for frame, _ in frames]
    installed = [file.startswith((sys.prefix, sys.base_prefix, "<")) for file in files]
    frame, line = frames[-1]
    raised = linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise ")
    return raised and ours[-1] and all(map(operator.or_, ours, installed))


@contextlib.contextmanager
def told(command: str, traceback_to_file: bool = True) -> Iterator[None]:
    """Let a command end with an exit code and one line on the error stream instead of a traceback.

    Args:
        command: its name, which begins the line.
        traceback_to_file: whether the traceback of an error that nobody foresaw goes to a file, which the line names.
            If not, it is printed, and the line comes below it: for commands that run the user's own code.

    Raises:
        SystemExit: 2 for a `UserError`, for what `is_a_refusal` and, with ``traceback_to_file``, for an error of the
            operating system; 130 after Ctrl-C; 70 otherwise.
    """
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has closed it, as `head` does. Python's own last flush would fail, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        say(f"{command}: interrupted.")
        sys.exit(INTERRUPTED)
    except UserError as error:
        say(two_lines(f"{command}: ", error.what, error.to_do))
        sys.exit(BAD_INPUT)
    except Exception as error:
        if isinstance(error, OSError) and traceback_to_file:
            say(f"{command}: {one_line(os_error(error))}")
            sys.exit(BAD_INPUT)
        # What a class says of its arguments, jsonargparse tells among what the option's other types would be.
        first = root(error) if "Does not validate against any of the Union subtypes" in str(error) else error
        if is_a_refusal(first):
            say(f"{command}: {one_line(first)}")
            sys.exit(BAD_INPUT)
        if traceback_to_file:
            where = _keep_traceback()
        else:
            traceback.print_exc()
            where = "above"
        what = f"{type(first).__name__}: {one_line(first)}".rstrip(".: ")
        say(f"{command}: an error that was not foreseen, {what}. Traceback: {where}")
        sys.exit(UNFORESEEN)


def say(line: str) -> None:
    """Write a line to the error stream, whatever characters it holds."""
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)  # noqa: T201


def _keep_traceback() -> str:
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="lightning-same-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError:  # no place is writable
        sys.stderr.write(text)
        return "above"
    return file.name
