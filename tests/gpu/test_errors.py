"""A process that raises ends them all, with its message, long before NCCL gives up."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu.machine import GPUS

pytestmark = [pytest.mark.gpu, pytest.mark.multi_gpu]

TIMEOUT = 240
"""Seconds; NCCL gives up after 600."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("place", ["pass-one", "pass-two", "probe", "saving"])
def test_all_end_with_the_message(place: str, strategy: str, tmp_path: Path) -> None:
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={min(GPUS, 4) or 2}"]
    began = time.monotonic()
    ended = subprocess.run(
        [*command, str(here.with_name("failing.py")), place, strategy],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode != 0
    assert f"the reason, in {place}" in ended.stderr
    assert time.monotonic() - began < TIMEOUT
