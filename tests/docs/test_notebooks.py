"""Every notebook runs from its first cell to its last, in a kernel of its own and away from the checkout."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.paths import DOCS, ROOT
from support.speed import slowness

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))

COLAB = "https://colab.research.google.com/github/lightning-same/lightning-same/blob/main/notebooks"


IN_A_CLONE = {"label_noise_study"}
"""What reads the studies' files, and so runs where it is."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def ran(name: str, folder: Path) -> nbformat.NotebookNode:
    notebook = read(name)
    limit = int(200 * slowness())
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=limit, kernel_name="python3", resources=resources).execute()
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def last_accuracies(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """The accuracy on the test images at the end of each training, out of the notebook's table."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    (table,) = [
        text for text in (output.get("data", {}).get("text/plain", "") for output in outputs) if "test acc" in text
    ]
    rows = re.findall(r"^(\S.*?) {2,}([\d.]+) {2,}[\d.]+$", table, re.MULTILINE)
    return {name: float(accuracy) for name, accuracy in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != "loggers"])
def test_a_notebook_runs(name: str, folder: Path) -> None:
    where = ROOT / "notebooks" if name in IN_A_CLONE else folder
    notebook = ran(name, where)
    assert pictures(notebook), "a notebook without a picture has drawn nothing"
    if name == "quick_start":
        assert_sam_gains(notebook)


def assert_sam_gains(notebook: nbformat.NotebookNode) -> None:
    accuracies = last_accuracies(notebook)
    assert accuracies["SAM, rho 0.6"] > accuracies["SGD"] + 0.15, accuracies


def test_the_quick_start_shows_a_gain_that_one_can_see() -> None:
    assert_sam_gains(read("quick_start"))


@pytest.mark.slow
def test_every_logger_that_is_installed_gets_the_same_keys(folder: Path) -> None:
    notebook = ran("loggers", folder)
    assert pictures(notebook)
    text = printed(notebook)
    (names,) = re.findall(r"^logging to (.*)$", text, re.MULTILINE)
    counts = dict(re.findall(r"^(\S+) +(\d+) keys, such as ckpt_fraction/ckpt1", text, re.MULTILINE))
    assert list(counts) == names.split()
    assert len(set(counts.values())) == 1, counts
    packages = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "W&B": "wandb"}
    missing = [package for package in packages.values() if importlib.util.find_spec(package) is None]
    assert len(counts) == 1 + len(packages) - len(missing)
    if missing:
        pytest.skip(f"not installed, so not tried: {', '.join(missing)}")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_in_colab_and_shows_its_outputs(name: str) -> None:
    notebook = read(name)
    if name not in IN_A_CLONE:
        assert f"({COLAB}/{name}.ipynb)" in notebook.cells[0].source
        assert "%pip install" in notebook.cells[1].source
    assert pictures(notebook), "the outputs were not saved"
    assert f"notebooks/{name}.ipynb)" in (DOCS / "notebooks.md").read_text()
