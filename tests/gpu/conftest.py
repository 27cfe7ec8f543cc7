"""The first hour on a machine with GPUs: `lightning-same doctor --full`, or ``pytest tests/gpu -n 0``.

Where there is none, all of it is skipped. ``LIGHTNING_SAME_REHEARSAL=1`` runs on the CPU what can run there, to see
that the tests themselves are right before they meet a GPU.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.ranks import Ranks

from gpu.machine import BACKEND, GPUS, REHEARSAL

# Before cuBLAS is used, or it is not deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        needed = 2 if item.get_closest_marker("multi_gpu") else 1
        if REHEARSAL:
            if item.get_closest_marker("cuda_only"):
                item.add_marker(pytest.mark.skip(reason="a rehearsal, and this is about CUDA itself"))
        elif needed > GPUS:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPU{'s' * (needed - 1)}, torch sees {GPUS}"))


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that give the same result each time, for what is compared bit for bit."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


@pytest.fixture(scope="session")
def gpus() -> Iterator[Ranks]:
    """A process for each GPU, up to four; in a rehearsal two of them."""
    group = Ranks(min(GPUS, 4) or 2, BACKEND)
    yield group
    group.stop()
