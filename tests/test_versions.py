"""`.ci/run oldest` tests the versions that pyproject.toml claims."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def lower_bounds() -> dict[str, Version]:
    """The oldest version of each package that a user, or the tests, may have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines += requirements if extra not in ("dev", "lightning-tests", "mutation", "zoo") else []
    bounds = {}
    for requirement in map(Requirement, lines):
        if requirement.name != project["name"]:
            (oldest,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
            bounds[canonicalize_name(requirement.name)] = Version(oldest)
    return bounds


def test_the_oldest_versions_are_pinned() -> None:
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {canonicalize_name(name): Version(version) for name, version in pins.items()} == lower_bounds()
