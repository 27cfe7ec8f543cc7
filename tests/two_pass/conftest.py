"""What tests of memory, and of searches, leave out."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def earlier_objects() -> Iterator[None]:
    """Leave out of each collection what was there before all tests of a file: a million objects to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
