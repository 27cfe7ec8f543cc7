"""docs/diagnostics.md: its code runs, its tables are complete, and its pictures are drawn by its script."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fits import fit
from support.nets import Plain, build
from support.paths import DOCS, ROOT

from lightning_same import CheckpointFractionMonitor, GradientNormMonitor, SharpnessMonitor

PAGE = (DOCS / "diagnostics.md").read_text()


SCRIPTS: list[str] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


NET = re.search(r"<!-- file: net.py -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_scripts_run(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(SCRIPTS) == 3
    assert NET is not None
    (tmp_path / "net.py").write_text(NET[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(SCRIPTS[index], "diagnostics.md", "exec"), {})
    monkeypatch.delitem(sys.modules, "net")
    if "sorted" in SCRIPTS[index]:
        keys = capsys.readouterr().out.split()
        options = PAGE.partition("- `every_n_epochs")[2]
        named = re.findall(r"`((?:ckpt|grad|weight)_[\w./-]+)`", options)
        assert len(named) == 9
        for name in named:
            assert any(key.startswith(name.removesuffix("...")) for key in keys), name


def test_the_table_holds_every_key() -> None:
    made = fit(build(Plain), callbacks=[CheckpointFractionMonitor(), GradientNormMonitor(), SharpnessMonitor()])
    rows = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(made.callback_metrics)


def test_the_pictures_are_those_of_the_script(tmp_path: Path) -> None:
    spec: Any = importlib.util.spec_from_file_location("diagnostics_page", DOCS / "diagnostics.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path, max_epochs=1)
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == sorted(re.findall(r"\]\((diagnostics_\w+\.png)\)", PAGE))
    assert all((DOCS / name).exists() for name in pictures)
