"""When two configurations are the same, how they are kept in JSON, and how their settings read.

JSON has texts for keys and no order; a configuration of ``lightning-same fit`` may have numbers for keys, as in
``weights: {2: 0.5, 10: 2.0}``, and an order that counts, as in the options of a ``ModuleDict``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

PAIRS = "!pairs"
"""The key under which a mapping that JSON cannot hold is kept, as a list of pairs."""


def encode(value: Any) -> Any:
    """What JSON keeps, for `decode`."""
    if isinstance(value, Mapping):
        if PAIRS not in value and all(isinstance(key, str) for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {PAIRS: [[key, encode(item)] for key, item in value.items()]}
    return [encode(item) for item in value] if isinstance(value, list) else value


def decode(value: Any) -> Any:
    """What was given to `encode`."""
    if isinstance(value, dict):
        if PAIRS in value:
            return {key: decode(item) for key, item in value[PAIRS]}
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value


def digest(config: Mapping[str, Any]) -> str:
    """A number in hexadecimal, equal for configurations that ``lightning-same fit`` takes for the same.

    The order of options does not matter. That of a mapping which is the value of an option does.
    """
    return checksum(json.dumps(_canonical(config, top=True), sort_keys=True))[:16]


def old_digest(config: Mapping[str, Any]) -> str | None:
    """The digest that runs had before they had checksums; None where it took different configurations for one."""
    if encode(config) != config:
        return None
    return checksum(json.dumps(config, sort_keys=True))[:16]


def checksum(content: str | bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _canonical(value: Any, named: bool = False, top: bool = False) -> Any:
    """JSON without order for options, which have names; pairs for mappings that are not in the order of their keys."""
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    named = named or top or "class_path" in value
    items = [
        (key, _canonical(item, named=top or (named and key in ("init_args", "dict_kwargs"))))
        for key, item in value.items()
    ]
    if PAIRS not in value and all(isinstance(key, str) for key in value) and (named or sorted(value) == list(value)):
        return dict(items)
    if named:
        items.sort(key=lambda pair: (type(pair[0]).__name__, repr(pair[0])))
    return {PAIRS: items}


def label(settings: Mapping[str, Any], between: str = " ", separator: str = ", ") -> str:
    """Settings as they are read: by the shortest names that tell them apart."""
    names = short_names(settings)
    return separator.join(f"{names[key]}{between}{text(value)}" for key, value in settings.items())


def short_names(names: Iterable[str]) -> dict[str, str]:
    """For each dotted name, its last part, or as many parts as it takes to be no other's."""
    names = list(names)
    short = {}
    for name in names:
        parts = name.split(".")
        others = [other.split(".") for other in names if other != name]
        counts = range(1, len(parts))
        count = next((n for n in counts if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        short[name] = ".".join(parts[-count:])
    return short


def text(value: Any) -> str:
    """A value in one printable line, as YAML would have it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(key)}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, str):
        return value if value.isprintable() and value.strip() == value != "" else json.dumps(value)
    return repr(value) if isinstance(value, float) else json.dumps(value)
