"""The configurations that come with the package: ``lightning-same configs``, and ``--config NAME`` of the others."""

import argparse
import difflib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_same.cli.errors import UserError, told
from lightning_same.cli.parser import Parser

Kind = Literal["fit", "study"]

STUDIES = "studies"
"""The folder of the studies among the configurations; their names begin with it, where they are not asked for."""

EPILOG = """examples:
  lightning-same fit --config digits
  lightning-same study --config digits --jobs 2
  lightning-same configs copy digits            writes configs/digits.yaml, to be changed
  lightning-same configs copy studies/digits    writes configs/studies/digits.yaml and what it builds on
"""


def folder() -> Path:
    """Where the configurations are: in the package, if that is from a wheel, else beside it, in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names(kind: Kind) -> list[str]:
    """The names of the configurations for ``lightning-same fit``, or those of the studies, without ``studies/``."""
    own = folder() / STUDIES if kind == "study" else folder()
    files = own.rglob("*.yaml") if kind == "study" else own.glob("*.yaml")
    return sorted(file.relative_to(own).with_suffix("").as_posix() for file in files)


def all_names() -> list[str]:
    """What ``lightning-same configs copy`` takes."""
    return [*names("fit"), *(f"{STUDIES}/{each}" for each in names("study"))]


def found(given: str, kind: Kind) -> Path | None:
    """The file of a configuration that comes with the package; None if there is none of this name.

    A file of the user's own goes first, also where it has the name of a configuration.
    """
    name = given.removeprefix(f"{STUDIES}/") if kind == "study" else given
    if os.path.isfile(given) or name not in names(kind):
        return None
    return (folder() / STUDIES if kind == "study" else folder()) / f"{name}.yaml"


def missing(given: str, kind: Kind) -> str:
    """What to say of a configuration that is neither a file nor comes with the package."""
    close = difflib.get_close_matches(given.removeprefix(f"{STUDIES}/"), names(kind), n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return (
        f"--config: there is no file {ascii(given)[1:-1]}, and no configuration of that name comes with the"
        f" package.{meant} `lightning-same configs` lists those that do."
    )


def main(args: Sequence[str]) -> None:
    """List the configurations, or copy one.

    Args:
        args: what follows ``lightning-same configs``.

    Raises:
        SystemExit: 2 for bad input.
    """
    given = parser().parse_args(list(args))
    if given.command is None:
        sys.stdout.write(_list())
    elif given.name is None:
        parser().error("`copy` needs a name; `lightning-same configs` lists them.")
    else:
        with told("lightning-same configs"):
            for file in _copy(given.name, given.to):
                sys.stdout.write(f"{file}\n")


def parser() -> Parser:
    """Of the command's options."""
    made = Parser(
        prog="lightning-same configs",
        description="List the configurations that come with the package, or copy one to change it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("command", nargs="?", choices=["copy"], help="copy NAME: write it to a folder of your own")
    made.add_argument("name", nargs="?", help="a name of the list")
    made.add_argument("--to", type=Path, default=Path("configs"), metavar="DIR", help="that folder; configs by default")
    return made


def _list() -> str:
    lines = []
    kinds: tuple[tuple[Kind, str, str], ...] = (
        ("fit", "lightning-same fit --config NAME", ""),
        ("study", "lightning-same study --config NAME", f"{STUDIES}/"),
    )
    for kind, command, prefix in kinds:
        known = {name: folder() / f"{prefix}{name}.yaml" for name in names(kind)}
        width = max(map(len, known), default=0)
        room = max(40, shutil.get_terminal_size((140, 24)).columns - width - 4)
        about = {name: textwrap.shorten(_about(file), room, placeholder=" ...") for name, file in known.items()}
        lines += [command, *(f"  {name:<{width}}  {line}" for name, line in about.items()), ""]
    return "\n".join([*lines, f"The files: {folder()}. `lightning-same configs copy NAME` copies one to change it.\n"])


def _about(file: Path) -> str:
    """The first sentence of a configuration's description, or of the comment at its head."""
    text = file.read_text(encoding="utf-8")
    described = re.search(r"^description: (?:>-\n)?((?:.+\n)(?:  .+\n)*)", text, re.MULTILINE)
    comment = re.match(r"(?:#.*\n)+", text)
    words = described[1] if described else comment[0].replace("#", "") if comment else ""
    sentence = re.match(r".*?[.](?=\s|$)", " ".join(words.split()))
    return sentence[0] if sentence else " ".join(words.split())


def _copy(name: str, target: Path) -> list[Path]:
    """Copy a configuration, and for a study the one that it builds on, under the same names."""
    kind: Kind = "study" if name.startswith(f"{STUDIES}/") else "fit"
    known = all_names()
    if name not in known:
        # The name of a study is often given without its folder.
        close = [each for each in known if each == f"{STUDIES}/{name}"] or difflib.get_close_matches(name, known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"no configuration {name!r} comes with the package.{meant} `lightning-same configs` lists those that do."
        )
    source = folder() / f"{name}.yaml"
    files = [source]
    if kind == "study":
        base = re.search(r"^base: (\S+)", source.read_text(encoding="utf-8"), re.MULTILINE)
        files += [(source.parent / base[1]).resolve()] if base else []
    copies = {file: target / file.relative_to(folder()) for file in files}
    for file, copy in copies.items():
        if copy.exists() and copy.read_bytes() != file.read_bytes():
            raise UserError(f"{copy} is there and differs from the shipped file. Name another folder with --to.")
    try:
        for file, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"{target} cannot be written to: {error.strerror}.", "Name another folder with --to."
        ) from error
    return list(copies.values())
