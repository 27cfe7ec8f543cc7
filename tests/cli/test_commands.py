"""The word after ``lightning-same``."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_same.__main__ import COMMANDS, main

LOADED = "{name.partition('.')[0] for name in sys.modules}"


def loaded_by(code: str, after: str = "") -> set[str]:
    """The top-level modules that some code loads in a fresh process, after other code."""
    code = f"import sys\n{after}\nbefore = {LOADED}\n{code}\nprint('modules:', *({LOADED} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("modules:")[2].split())


HEAVY = {
    "torch",
    "lightning",
    "torchmetrics",
    "torchvision",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy",
    "jsonargparse",
}


@pytest.mark.parametrize(
    "code",
    [
        "import lightning_same",
        "from lightning_same.__main__ import main; main(['--help'])",
        "from lightning_same.__main__ import main\ntry: main(['plot', '--help'])\nexcept SystemExit: pass",
        "from lightning_same.__main__ import main\ntry: main(['study', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_what_needs_no_torch_starts_without_it(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def test_a_public_name_loads_nothing_that_lightning_does_not() -> None:
    code = "import lightning_same\nfor name in lightning_same.__all__: getattr(lightning_same, name)"
    code += "\nassert 'lightning_same.two_pass.mixin' in sys.modules"
    assert not loaded_by(code, after="import lightning.pytorch, torchmetrics, scipy") & HEAVY


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_all_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        assert any(line.split()[:1] == [command] and len(line.split()) > 3 for line in lines), command


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sharpnes", "x.ckpt"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "lightning-same: error: no command 'sharpnes'; did you mean sharpness?\n"
    with pytest.raises(SystemExit) as stop:
        main(["zzz"])
    assert stop.value.code == 2
    choices = ", ".join(COMMANDS)
    assert capsys.readouterr().err == f"lightning-same: error: no command 'zzz'; choose from {choices}.\n"


def test_modules_are_found_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` does, before the installed ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/somewhere/else"])
    main(["--help"])
    main(["--help"])
    assert sys.path == [str(tmp_path), "/somewhere/else"]
