"""What runs depend on beside their configurations."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("lightning-same", "lightning", "torch", "numpy")


def versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on; a package that is missing is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """In which versions two machines differ that must not, in words.

    Args:
        there: the versions of the machine that trains.
        here: the versions of the one that the study was started on.
    """
    names = [name for name in PACKAGES if name != "numpy"]
    return [
        f"{name} {there.get(name, 'missing')} instead of {here.get(name)}"
        for name in names
        if there.get(name) != here.get(name)
    ]
