"""What the parser of `lightning-same fit` finds wrong, in a line that says what, and often one that says what to do."""

import argparse
import inspect
import re
from collections.abc import Sequence

import lightning_same
from lightning_same.cli.errors import WANTED, did_you_mean, parser_error
from lightning_same.rules.base import Rule
from lightning_same.rules.combinations import Combination
from lightning_same.rules.perturbations import Perturbation
from lightning_same.rules.schedules import Schedule
from lightning_same.rules.timing import Timing
from lightning_same.two_pass.options import CHOICES as OPTIONS

# Only classes that are loaded are found: by the parser, for a class path without its module such as `SAM`, and by
# `_kinds`.
for public in lightning_same.__all__:
    getattr(lightning_same, public)


def explained(message: str) -> str:
    """An error message of the parser in a line that says what is wrong, and often one that says what to do."""
    if message.startswith("--config: "):  # by `ConfigFile`
        return message
    if re.search(r"\btwo_pass\b", message):
        return _explained_options(message)
    if not re.search(r"\bsam\b", message):
        return parser_error(message)
    unknown = re.search(r"import path string: (\S+)", message)
    option = re.search(r"Option '(\w+)' is not accepted", message)
    # The parts of a rule are nested in it: the error is about the innermost class and the innermost key.
    owners = re.findall(r"class_path '(?:\w+\.)*(\w+)'", message)
    keys = re.findall(r'Parser key "(?:\w+\.)*(\w+)"', message)
    if option and owners and owners[-1] in CHOICES["every"]:
        arguments = list(inspect.signature(CHOICES["every"][owners[-1]]).parameters)
        return (
            f"--sam: {owners[-1]} has no argument {_meant(option[1], arguments)} Its arguments: {', '.join(arguments)}."
        )
    if owners and len(keys) > 1 and keys[-1] not in CHOICES:
        return _explained_value(message, owners[-1], keys)
    if unknown:
        kind = keys[-1] if keys and keys[-1] in CHOICES else "rule"
        names = list(CHOICES[kind])
        return f"--sam: there is no {kind} {_meant(unknown[1], names)} The {kind}s: {', '.join(names)}."
    return parser_error(message)


def unknown_option(parser: argparse.ArgumentParser, message: str) -> str:
    """What to say of an option that there is not, also in a file; empty if the message is about something else."""
    unknown = re.search(r"(?:'(\w+)' )?does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)", message)
    if unknown is None:
        return ""
    name = unknown[2] or unknown[3]
    meant = did_you_mean(f"--{name}", sorted(_options(parser)))
    command = f"lightning-same {unknown[1]}" if unknown[1] else parser.prog
    return f"there is no option --{name}.\n{meant} `{command} --help` lists the options."


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The names of all options, those of the subcommands included."""
    names: set[str] = set()
    for action in parser._actions:
        names |= {name for name in action.option_strings if name.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            names = names.union(*map(_options, action.choices.values()))
    return names


def _explained_value(message: str, owner: str, keys: Sequence[str]) -> str:
    """What the argument of a rule, or of one of its parts, may be."""
    option, given = f"--{'.'.join(keys)}", re.search(r"(?:Given|Got) value: (.*)", message)
    # What the innermost key may be: one type, or else the last choice of types that is told.
    subtypes = (
        re.findall(r"Expected an? (<.*?>)\. Got value", message) or re.findall(r"Subtypes: \[(.*)\]", message)[1:]
    )
    kinds = re.findall(r"<class '(?:\w+\.)*(\w+)'>|(Sequence|list)\[", subtypes[-1]) if subtypes else []
    wanted = [WANTED.get(kind, f"a {kind.lower()}") if kind else "a list" for kind, _ in kinds]
    value = given[1][:100].strip() if given else ""
    if not wanted:
        return parser_error(message)
    to_do = f"`lightning-same fit --sam.help {owner}` explains the arguments."
    if "a list" in wanted and "," in value:
        to_do = f'A list stands in brackets: {option} "[{value}]".'
    elif parts := [name for kind, _ in kinds for name in CHOICES.get(kind.lower(), {})]:
        to_do = f"The {kinds[-1][0].lower()}s: {', '.join(parts)}. {to_do}"
    return f"{option} must be {' or '.join(wanted)}, got {value!r}.\n{to_do}"


def _explained_options(message: str) -> str:
    unknown = re.search(r"Option '(\w+)' is not accepted", message)
    value = re.search(r'Parser key "(\w+)":\s+Expected a typing\.Literal\S.*Got value: (\S+)', message)
    if unknown:
        return f"--two_pass: there is no option {_meant(unknown[1], list(OPTIONS))} The options: {', '.join(OPTIONS)}."
    if value and value[1] in OPTIONS:
        choices = OPTIONS[value[1]]
        return f"--two_pass.{value[1]} must be {' or '.join(choices)}; got {_meant(value[2], choices)}"
    return parser_error(message)


def _kinds(base: type) -> dict[str, type]:
    """The concrete subclasses of a base, by name."""
    found = {base.__name__: base} if not inspect.isabstract(base) else {}
    subclasses: list[type] = base.__subclasses__()
    for each in subclasses:
        if each.__module__.startswith("lightning_same."):
            found |= _kinds(each)
    return found


CHOICES: dict[str, dict[str, type]] = {
    "rule": _kinds(Rule),
    "perturbation": _kinds(Perturbation),
    "combination": _kinds(Combination),
    "timing": _kinds(Timing),
    "schedule": _kinds(Schedule),
}
CHOICES["every"] = {name: kind for kinds in CHOICES.values() for name, kind in kinds.items()}


def _meant(word: str, choices: Sequence[str]) -> str:
    return f"{word!r}. {did_you_mean(word, choices)}".rstrip()
