"""What importing the package brings along. Which room may import which is import-linter's, in pyproject.toml."""

import subprocess
import sys

WITHOUT_EXTRAS = """
import importlib.metadata
import sys

extras = {"jsonargparse": "jsonargparse", "sklearn": "scikit-learn", "torchvision": "torchvision"}
installed = importlib.metadata.distribution

def distribution(name):
    if name in extras.values():
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)

importlib.metadata.distribution = distribution
sys.modules.update(dict.fromkeys(extras))  # None: importing it raises ModuleNotFoundError

import lightning_same

for name in lightning_same.__all__:
    getattr(lightning_same, name)
above = tuple(f"lightning_same.{name}" for name in ("cli", "experiments"))
heavy = [name for name in sys.modules if name.startswith(above)]
assert not heavy, heavy
"""


def test_the_public_names_need_no_extra() -> None:
    """Lightning and torchmetrics look for optional packages by themselves, so both ways to find one are closed."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
