from collections.abc import Iterator

import pytest
import support.environment  # noqa: F401
from support.ranks import Ranks


@pytest.hookimpl(tryfirst=True)  # Before xdist looks for the groups.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all tests of several processes, and starts each group of them once."""
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def ranks() -> Iterator[dict[int, Ranks]]:
    """Groups of 2 and 4 processes, started at their first use."""
    groups = {size: Ranks(size) for size in (2, 4)}
    yield groups
    for group in groups.values():
        group.stop()
