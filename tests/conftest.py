import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from ranks import Ranks

# The nets are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)

# Others may use the machine too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


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
