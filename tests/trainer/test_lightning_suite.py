"""The plugin that runs Lightning's own tests, on a checkout that has four of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning_suite.differences import DIFFERENCES
from lightning_suite.fits import KINDS
from support.paths import TESTS

TESTS_OF_LIGHTNING = """
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

CALLS = []

class Counting(BoringModel):
    def training_step(self, batch, batch_idx):
        CALLS.append(batch_idx)
        return super().training_step(batch, batch_idx)

def fit(module):
    trainer = Trainer(fast_dev_run=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module)
    return trainer

@pytest.mark.flaky(reruns=1)
def test_passes():
    assert fit(BoringModel()).global_step == 2

def test_fits_nothing():
    assert BoringModel().automatic_optimization

def test_fails_once_and_fits_nothing():
    CALLS.append("once")
    assert CALLS.count("once") == 2

def test_fails_anyway():
    fit(BoringModel())
    assert False

def test_counts_the_steps():
    CALLS.clear()
    fit(Counting())
    assert CALLS == [0, 1]
"""


@pytest.mark.slow
def test_what_differs_fails_and_what_fails_anyway_does_not(tmp_path: Path) -> None:
    for name, content in {
        "src/version.info": pl.__version__,
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = ['--strict-markers']\n",
        "tests/tests_pytorch/test_four.py": TESTS_OF_LIGHTNING,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    command = [sys.executable, "-m", "lightning_suite", str(tmp_path), "--outcomes", str(tmp_path / "outcomes.jsonl")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    for again in ([], ["--kind", "monitors"]):  # The second run takes all outcomes from the file.
        done = subprocess.run([*command, *again], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "DIFFERS tests/tests_pytorch/test_four.py::test_counts_the_steps" in done.stdout
        outcomes = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
        found = {(each["kind"], each["test"].split("::")[1]): (each["outcome"], each["fits"]) for each in outcomes}
        assert len(outcomes) == len(found) == 8
        for kind in KINDS:
            assert found[kind, "test_passes"] == ("passed", 1)
            assert found[kind, "test_fails_anyway"] == ("fails in plain Lightning too", 1)
            assert found[kind, "test_counts_the_steps"] == ("differs", 1)
        assert found["two_pass", "test_fits_nothing"] == ("passed", 0)
        assert found["two_pass", "test_fails_once_and_fits_nothing"] == ("fails in plain Lightning too", 0)


def test_every_difference_has_kinds_and_a_reason() -> None:
    assert all(kinds and set(kinds) <= set(KINDS) and len(reason) > 40 for kinds, reason in DIFFERENCES.values())
