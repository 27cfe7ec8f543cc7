"""YAML files, read as ``lightning-same fit`` reads them, with the lines of what they hold, and within bounds.

Beyond what PyYAML checks: a key given twice is an error, what an alias names is copied, and a file is refused that is
larger, deeper or, with its aliases written out, longer than a configuration can be.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from yaml.constructor import SafeConstructor  # type: ignore[import-untyped]
from yaml.resolver import Resolver  # type: ignore[import-untyped]

from lightning_same.experiments.study.errors import StudyError

MAX_BYTES = 2**20
MAX_DEPTH = 50
MAX_VALUES = 100_000
MAX_DIGITS = 400

Path_ = tuple[Any, ...]
"""Keys and indices that lead to a value."""


class Document(NamedTuple):
    """What a file holds.

    Attributes:
        path: the file.
        content: mappings, lists, texts, numbers, true, false and null.
        lines: for each path of keys and indices, the line in which it begins, from 1.
    """

    path: Path
    content: dict[Any, Any]
    lines: dict[Path_, int]

    def at(self, *keys: Any) -> str:
        """The file, and the line in which a value begins or, where it has none, what holds it."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines[keys]}" if keys in self.lines else str(self.path)


def read_yaml(path: Path) -> Document:
    """Read a mapping.

    Raises:
        StudyError: if the file cannot be read, is no YAML, or exceeds the bounds of this module; names the line.
    """
    text = _text(path)
    try:
        root = _Composer(path, text).compose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise StudyError(f"{path}{line}: this is no YAML: {said}.") from error
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: this is no YAML: {error}.") from error
    if root is None:
        raise StudyError(f"{path} must hold a mapping of options, but is empty.")
    builder = _Builder(path)
    content = builder.build(root, ())
    if not isinstance(content, dict):
        raise StudyError(f"{path}:{root.line}: must be a mapping of options, got {_kind(content)}.")
    return Document(path, content, builder.lines)


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise StudyError(f"{path} cannot be read: it is {'a directory' if path.is_dir() else 'no regular file'}.")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a null byte in its name
        raise StudyError(f"{str(path)!r} is no name of a file: {error}.") from error
    if len(content) > MAX_BYTES:
        raise StudyError(f"{path} is longer than {MAX_BYTES // 2**20} MiB, which no study is.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(f"{path}:{line}: must be in UTF-8, got the byte 0x{content[error.start]:02x}.") from error


@dataclass
class _Node:
    """A value before it is built: the text of a scalar, the nodes of a list, the pairs of nodes of a mapping."""

    kind: str
    line: int
    tag: str | None = None
    value: Any = None
    implicit: tuple[bool, bool] = (True, False)
    whole: bool = False
    pairs: list[tuple["_Node", "_Node"]] = field(default_factory=list)


class _Composer:
    """Nodes out of the parser's events; never deeper than `MAX_DEPTH`, so that no stack overflows."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.anchors: dict[str, _Node] = {}
        # As fit's reader: libyaml where PyYAML has it.
        self.events: Iterator[Any] = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def compose(self) -> _Node | None:
        root = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise StudyError(f"{self.path}:{event.start_mark.line + 1}: a second document begins here.")
                root = self._node(next(self.events), 1)
        return root

    def _node(self, event: Any, depth: int) -> _Node:
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise StudyError(f"{self.path}:{line}: this is nested more than {MAX_DEPTH} deep.")
        if isinstance(event, yaml.AliasEvent):
            node = self.anchors.get(event.anchor)
            if node is None:
                raise StudyError(f"{self.path}:{line}: there is no anchor &{event.anchor} before this alias.")
            if not node.whole:
                raise StudyError(f"{self.path}:{line}: the alias *{event.anchor} stands within what it names.")
            return node
        kinds = {yaml.ScalarEvent: "scalar", yaml.SequenceStartEvent: "list", yaml.MappingStartEvent: "mapping"}
        node = _Node(kinds[type(event)], line, event.tag)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        if node.kind == "scalar":
            node.value, node.implicit = event.value, event.implicit
        elif node.kind == "list":
            node.value = [self._node(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)]
        else:
            for key in self._until(yaml.MappingEndEvent):
                node.pairs.append((self._node(key, depth + 1), self._node(next(self.events), depth + 1)))
        node.whole = True
        return node

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event


_YAML = "tag:yaml.org,2002:"
_MERGE = f"{_YAML}merge"
_PLAIN = {f"{_YAML}{name}" for name in ("null", "bool", "int", "float", "str")}
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
"""What fit's reader takes for a float: also 1e-3, which is a text in YAML 1.1."""


def _as_fit_reads(kind: Any) -> Any:
    """A class of PyYAML with the scalars of fit's reader: another float, and dates that stay texts."""
    changed = (f"{_YAML}timestamp", f"{_YAML}float")
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in changed]
        for first, known in kind.yaml_implicit_resolvers.items()
    }
    kind.add_implicit_resolver(f"{_YAML}float", _FLOAT, list("-+0123456789."))
    return kind


@_as_fit_reads
class _Scalars(SafeConstructor, Resolver):  # type: ignore[misc]
    def __init__(self) -> None:
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    def tag(self, node: _Node) -> str:
        if node.tag not in (None, "!"):
            return str(node.tag)
        return str(self.resolve(yaml.ScalarNode, node.value, node.implicit))

    def value(self, node: _Node, tag: str) -> Any:
        return self.yaml_constructors[tag](self, yaml.ScalarNode(tag, node.value))


@_as_fit_reads
class Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes what fit's reader reads as what it was; never an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice."""
        return True


def _represented_text(dumper: Dumper, text: str) -> Any:
    """In quotes where it is not printable: PyYAML folds some line breaks of Unicode into spaces otherwise."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _represented_text)


def dump_yaml(content: Any) -> str:
    """YAML that ``lightning-same fit`` reads as this content, in its order."""
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True))


class _Builder:
    """Values out of nodes; no two share an object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scalars = _Scalars()
        self.lines: dict[Path_, int] = {}
        self.count = 0

    def build(self, node: _Node, path: Path_, line: int | None = None) -> Any:
        self._count(node, len(path))
        self.lines[path] = line or node.line
        if node.kind == "scalar":
            return self._scalar(node)
        self._check_tag(node, "seq" if node.kind == "list" else "map")
        if node.kind == "list":
            return [self.build(item, (*path, number)) for number, item in enumerate(node.value)]
        built: dict[Any, Any] = {}
        for key, value, key_line in self._pairs(node, len(path)):
            built[key] = self.build(value, (*path, key), key_line)
        return built

    def _count(self, node: _Node, depth: int) -> None:
        """Aliases make a file longer and deeper than it is written."""
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            raise StudyError(
                f"{self.path}:{node.line}: with its aliases written out, this is more than {MAX_VALUES} values, or"
                f" nested more than {MAX_DEPTH} deep."
            )

    def _pairs(self, node: _Node, depth: int) -> Iterator[tuple[Any, _Node, int]]:
        """Keys, values and lines of a mapping: first those that it merges, so that its own replace them."""
        own: dict[Any, int] = {}
        merged: list[_Node] = []
        kept = []
        for key_node, value in node.pairs:
            if key_node.kind != "scalar":
                raise StudyError(
                    f"{self.path}:{key_node.line}: a key must be a text or a number, got a {key_node.kind}."
                )
            merge = self.scalars.tag(key_node) == _MERGE
            key = "<<" if merge else self._scalar(key_node)
            if key in own:
                raise StudyError(
                    f"{self.path}:{key_node.line}: the key `{key}` stands here for the second time; first in line"
                    f" {own[key]}."
                )
            own[key] = key_node.line
            if merge:
                merged = value.value if value.kind == "list" else [value]
                if any(source.kind != "mapping" for source in merged):
                    raise StudyError(f"{self.path}:{key_node.line}: `<<` must name a mapping, or a list of mappings.")
            else:
                kept.append((key, value, key_node.line))
        for source in reversed(merged):
            self._check_tag(source, "map")
            self._count(source, depth)
            yield from self._pairs(source, depth + 1)
        yield from kept

    def _scalar(self, node: _Node) -> Any:
        tag = self.scalars.tag(node)
        if tag == f"{_YAML}value" or tag == _MERGE:
            return node.value
        if tag not in _PLAIN:
            self._refuse_tag(node, tag)
        if tag in (f"{_YAML}int", f"{_YAML}float") and len(node.value) > MAX_DIGITS:
            raise StudyError(f"{self.path}:{node.line}: this number has {len(node.value)} characters.")
        try:
            return self.scalars.value(node, tag)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            kind = tag.removeprefix(_YAML)
            raise StudyError(f"{self.path}:{node.line}: {node.value!r} is no {kind}.") from error

    def _check_tag(self, node: _Node, kind: str) -> None:
        if node.tag not in (None, "!", f"{_YAML}{kind}"):
            self._refuse_tag(node, str(node.tag))

    def _refuse_tag(self, node: _Node, tag: str) -> None:
        shown = "!!" + tag.removeprefix(_YAML) if tag.startswith(_YAML) else tag
        raise StudyError(
            f"{self.path}:{node.line}: {shown} is not used in a study: mappings, lists, texts, numbers, true, false and"
            " null are."
        )


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
