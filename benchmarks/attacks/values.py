"""What is put in the place of something right, in values, in files and in what they hold."""

import copy
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st


class Silent(Exception):
    """Something has changed on the way, or is gone, and nobody has said so."""


@dataclass(frozen=True)
class Attack:
    """A kind of input.

    Attributes:
        name: what it is called.
        share: of all cases.
        strategy: makes a case.
        target: takes a case and an empty folder.
        refusals: the errors by which functions refuse; commands end with exit code 2.
    """

    name: str
    share: float
    strategy: st.SearchStrategy[Any]
    target: Callable[[Any, Path], None]
    refusals: tuple[type[BaseException], ...] = ()


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**64, 10**400, 0.0, -0.0, 1e-320, 1e30, 1e39, 1e300, math.inf, math.nan]),
    st.integers(),
    st.floats(),
)
ODD = ["", " ", "..", "/", "a/b", "\x00", "\n", "\u202e", "\ud800", "x" * 300, "<b>", "# c", "SAM", "SAME"]
LIKE_YAML = ["null", "~", "1e-3", "yes", "0x1f", "*a", "&a", "!!python/object:os.system", "{}", "[", "a: b", "1:30"]
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(ODD + LIKE_YAML))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXTS, st.integers()), inner, max_size=3)
    ),
    max_leaves=5,
)
BYTES = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8)),
    st.tuples(st.just("add"), st.binary(max_size=50)),
    st.tuples(st.just("be"), st.binary(max_size=200)),
)
FILES = st.one_of(
    BYTES, st.tuples(st.sampled_from(["gone", "folder", "loop", "pipe", "link to nothing", "unreadable"]), st.none())
)


def damaged(content: bytes, damage: tuple[str, Any]) -> bytes:
    how, what = damage
    if how == "cut":
        return content[: int(len(content) * what)]
    if how == "flip":
        changed = bytearray(content)
        for where, byte in what:
            if changed:
                changed[int(where * len(changed))] = byte
        return bytes(changed)
    return content + what if how == "add" else what


def damage_file(path: Path, damage: tuple[str, Any]) -> None:
    how, _ = damage
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if how in ("cut", "flip", "add", "be"):
        path.write_bytes(damaged(content, damage))
        return
    if how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link to nothing":
        path.symlink_to("/nowhere/at/all")
    elif how == "unreadable":
        path.symlink_to("/proc/self/mem")


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [at, *(place for key, item in items for place in places(item, (*at, key)))]


def edited(content: Any, edits: list[Any]) -> Any:
    content = copy.deepcopy(content)
    for place, what, value in edits:
        holder = content
        try:
            for key in place[:-1]:
                holder = holder[key]
            if what == "set":
                holder[place[-1]] = value
            elif what == "key":
                holder[value if not isinstance(value, dict | list) else str(value)] = holder.pop(place[-1])
            elif what == "copy":
                holder[f"{place[-1]} again" if isinstance(holder, dict) else len(holder) - 1] = holder[place[-1]]
            else:
                del holder[place[-1]]
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # an edit before has taken its place
    return content


def as_text(content: Any) -> str:
    return str(yaml.dump(content, sort_keys=False, allow_unicode=True))
