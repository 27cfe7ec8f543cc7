from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import TESTS
from support.ranks import Ranks
from support.speed import slowness

FAST = ("gradients", "replay", "rules")
"""Folders whose tests take milliseconds each, but for those in `SLOWER`; the rest is not even imported for them."""

SLOWER = ("test_cost.py", "test_controls.py")


def is_fast(path: Path) -> bool:
    """Whether the tests of a file, or of a folder, are."""
    inner = path.relative_to(TESTS).parts if TESTS in path.parents else ()
    return bool(inner) and inner[0] in FAST and path.name not in SLOWER


def pytest_configure(config: pytest.Config) -> None:
    """Import what all tests need; but not in the process that only hands tests to workers, which wait for it."""
    hands_out = config.getoption("numprocesses", None) and config.getoption("dist") != "no"
    if not hands_out or hasattr(config, "workerinput"):
        import support.environment  # noqa: F401


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m fast``, leave out the files that have no such test."""
    return (
        True if config.option.markexpr == "fast" and collection_path != TESTS and not is_fast(collection_path) else None
    )


def starts_processes(item: pytest.Item) -> bool:
    """Whether a test runs on the groups of processes."""
    return "ranks" in getattr(item, "fixturenames", ())


def pytest_itemcollected(item: pytest.Item) -> None:
    """One worker runs all tests of several processes, and one those of a study that is trained once for all of them.

    Said here, since xdist reads it before any later hook of ours.
    """
    if starts_processes(item):
        item.add_marker(pytest.mark.xdist_group("ranks"))
    elif "undisturbed" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("study"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test's limit is that of this machine as it is when the test begins."""
    if item.config.getoption("timeout", None) is None:
        own = item.get_closest_marker("timeout")
        limit = float(own.args[0] if own and own.args else item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(limit * slowness()), append=False)
    return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts nothing is fast."""
    for item in items:
        if is_fast(item.path) and not starts_processes(item):
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session")
def ranks() -> Iterator[dict[int, Ranks]]:
    """Groups of 2 and 4 processes, started at their first use."""
    groups = {size: Ranks(size) for size in (2, 4)}
    yield groups
    for group in groups.values():
        group.stop()
