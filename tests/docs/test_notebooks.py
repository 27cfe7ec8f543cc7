"""Every notebook runs from its first cell to its last, in a kernel of its own."""

import nbformat
import pytest
from nbclient import NotebookClient
from support.paths import ROOT

NOTEBOOKS = ROOT / "notebooks"


@pytest.mark.parametrize("name", ["anatomy_of_a_gradient", "label_noise_study", "quick_start"])
def test_a_notebook_runs(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert pictures, "a notebook without a picture has drawn nothing"


def test_there_are_no_other_notebooks() -> None:
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    assert names == ["anatomy_of_a_gradient", "label_noise_study", "quick_start"]
