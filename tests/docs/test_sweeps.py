"""The scripts of the pages on sweeps, run as they stand, at a small size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import DOCS, ROOT
from support.speed import slowness
from support.studies import write_study


@pytest.mark.parametrize(("page", "needs"), [("sweep_with_optuna", "optuna"), ("sweep_with_ray_tune", "ray.tune")])
def test_a_sweep_finds_a_radius(page: str, needs: str, tmp_path: Path) -> None:
    pytest.importorskip(needs)
    write_study(tmp_path)
    text = (DOCS / f"{page}.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / f"{page}.py").write_text(script)
    made = subprocess.run(
        [sys.executable, f"{page}.py", "--config", "base.yaml", "--trials", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280 * slowness(),
    )
    assert made.returncode == 0, made.stderr[-3000:]
    rho, accuracy = map(float, re.findall(r"best: rho=(\S+), val/accuracy=(\S+)", made.stdout)[0])
    assert 0.01 <= rho <= 1
    assert 0 <= accuracy <= 1
