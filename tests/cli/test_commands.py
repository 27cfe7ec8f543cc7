"""The word after ``lightning-same``."""

import subprocess
import sys

import pytest

from lightning_same.__main__ import COMMANDS, main


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after some code."""
    code += "\nimport sys\nprint('modules:', *{name.partition('.')[0] for name in sys.modules})"
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
    loaded = loaded_by("import lightning_same\nfor name in lightning_same.__all__: getattr(lightning_same, name)")
    assert "lightning" in loaded
    assert not (loaded - loaded_by("import lightning.pytorch, torchmetrics, scipy")) & HEAVY


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
