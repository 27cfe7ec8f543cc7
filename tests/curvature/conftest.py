import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """What has not converged must say so, and nothing else may."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
