"""The README's code runs as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

README = ROOT / "README.md"


BLOCKS: list[tuple[str, str, str]] = re.findall(
    r"(?:<!-- ([^>]+) -->\n)?```(\w+)\n(.*?)```", README.read_text(), re.DOTALL
)


FILES = {mark.removeprefix("file: "): code for mark, _, code in BLOCKS if mark.startswith("file: ")}


SCRIPTS = [code for mark, language, code in BLOCKS if language == "python" and not mark]


COMMANDS = [code for mark, language, code in BLOCKS if language == "bash" and not mark]


CONFIGS = [code for _, language, code in BLOCKS if language == "yaml"]


@pytest.fixture(autouse=True)
def _as_a_new_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, code in FILES.items():
        Path(name).write_text(code)


def test_the_readme_has_all_that_is_run_here() -> None:
    assert list(FILES) == ["net.py"]
    assert (len(SCRIPTS), len(COMMANDS), len(CONFIGS)) == (5, 1, 1)
    assert {mark for mark, *_ in BLOCKS if "command" in mark} == {"quickstart-command", "test-command"}


@pytest.mark.parametrize("code", SCRIPTS, ids=["mixin", "by hand", "diagnostics only", "plain torch", "options"])
def test_scripts_run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "callback_metrics" in code:
        assert "'ckpt_fraction/ckpt1': 0." in done.stdout


def test_the_command_and_the_config_run() -> None:
    Path("config.yaml").write_text(CONFIGS[0])
    _, *args = shlex.split(COMMANDS[0])
    for command in (
        args,
        ["fit", "--config", "config.yaml", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir=."],
    ):
        done = subprocess.run([sys.executable, "-m", "lightning_same", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_options_in_the_text_run() -> None:
    options = re.findall(r"`(--[^` ]+[ =][^`]+)`", README.read_text())
    quickstart = [option for option in options if option.startswith(("--sam", "--trainer.logger"))]
    assert quickstart[:2] == ["--sam SAM", "--sam null"]
    others = [option for option in options if option not in quickstart]
    _, *command = shlex.split(COMMANDS[0])
    digits = ["fit", "--config", str(ROOT / "configs" / "digits.yaml"), "--trainer.max_epochs", "1"]
    for args, chosen, saved in (
        (digits, quickstart[2:], ("TensorBoardLogger", "ckpt: 3")),
        (command, others, ("CheckpointFractionMonitor", "every_n_steps: 5", "ascent: local")),
    ):
        words = [word for option in chosen for word in shlex.split(option)]
        done = subprocess.run([sys.executable, "-m", "lightning_same", *args, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (config,) = Path().rglob("config.yaml")
        assert all(word in config.read_text() for word in saved), config.read_text()
        config.unlink()


def test_the_table_of_rules_is_complete_and_true() -> None:
    import lightning_same
    from lightning_same import Rule

    rows = re.findall(r"^\| `((\w+)\(.*?\))` \|", README.read_text(), re.MULTILINE)
    rules = {
        name
        for name in lightning_same.__all__
        if isinstance(kind := getattr(lightning_same, name), type) and issubclass(kind, Rule)
    }
    assert {name for _, name in rows} == rules - {"Rule"}
    for call, name in rows:
        rule = getattr(lightning_same, name)()
        for argument, value in re.findall(r"(\w+)=([\d.]+)", call):
            assert getattr(rule, argument) == float(value)
