"""`.ci/run oldest` tests the versions that pyproject.toml claims."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def installed() -> list[str]:
    """What `.ci/run oldest` installs: the library, and the extra `test` with those that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, extras, seen = [*project["dependencies"]], ["test"], {"test"}
    while extras:
        for line in project["optional-dependencies"][extras.pop()]:
            requirement = Requirement(line)
            if requirement.name != project["name"]:
                lines.append(line)
            new = requirement.extras - seen if requirement.name == project["name"] else set()
            extras += new
            seen |= new
    return lines


def lower_bounds() -> dict[str, Version]:
    """The oldest version of each package that a user, or the tests, may have."""
    bounds = {}
    for requirement in map(Requirement, installed()):
        (oldest,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
        bounds[canonicalize_name(requirement.name)] = Version(oldest)
    return bounds


def test_the_oldest_versions_are_pinned() -> None:
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {canonicalize_name(name): Version(version) for name, version in pins.items()} == lower_bounds()
