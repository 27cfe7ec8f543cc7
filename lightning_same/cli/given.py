"""What was given on the command line without effect: an argument of no rule, a model that a file replaces."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_same.cli.configs import found


def value_of(option: str, words: Sequence[str]) -> str:
    """The last value of an option; empty if it is not given."""
    value = ""
    for word, following in itertools.pairwise([*words, ""]):
        if word == option:
            value = following
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def argument_of_no_rule(words: Sequence[str]) -> str:
    """The first option such as ``--sam.rho``, where neither ``--sam`` nor a configuration names a rule; else empty.

    jsonargparse would take the base class of all rules, also for a model whose class has a rule of its own.
    """
    if any(re.match(r"--sam(=|$|\.class_path)", word) for word in words):
        return ""
    arguments = [word.partition("=")[0] for word in words if re.match(r"--sam\.(?!help)", word)]
    return arguments[0] if arguments and not any(map(_names_a_rule, _configurations(words))) else ""


def not_as_given(asked: Any, used: Any, words: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The model's options that were given and that Lightning has replaced by those of a checkpoint file.

    Args:
        asked: the model's configuration, as parsed from the command line.
        used: the same, when the checkpoint file had been read.
        words: the command line. Of the model's arguments only those count that stand there.

    Returns:
        For each the option, what was asked for and what is used.
    """
    if not (isinstance(asked, Mapping) and isinstance(used, Mapping)):
        return []
    if asked.get("class_path") != used.get("class_path"):
        return [("--model", asked.get("class_path"), used.get("class_path"))]
    before, after = _arguments(asked), _arguments(used)
    options = {word.partition("=")[0] for word in words if word.startswith("--model.")}
    names = sorted(option.removeprefix("--model.").removeprefix("init_args.") for option in options)
    return [
        (f"--model.{name}", before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]


def _arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    named = model.get("init_args", {} if "class_path" in model else model)
    return {**dict(named or {}), **(model.get("dict_kwargs") or {})}


def _configurations(words: Sequence[str]) -> list[str]:
    values = [word.partition("=")[2] for word in words if re.match(r"(-c|--config)=", word)]
    return values + [value for name, value in itertools.pairwise(words) if name in ("-c", "--config")]


def _names_a_rule(configuration: str) -> bool:
    """Whether the text of a configuration, or the file of this name, has an entry ``sam`` that is not null."""
    path = found(configuration, "fit") or Path(configuration)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # YAML itself, or what the parser has still to complain about
        text = configuration
    return re.search(r"\bsam[\"']?\s*:(?!\s*(null|~))", text) is not None
