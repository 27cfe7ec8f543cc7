"""The README's code runs as it stands."""

import doctest
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import CASES, FEATURES

README = Path(__file__).parents[1] / "README.md"
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


@pytest.mark.parametrize("code", SCRIPTS, ids=["mixin", "by hand", "only look", "plain torch", "options"])
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


def test_the_page_of_rules_is_up_to_date() -> None:
    folder = README.parent / "docs"
    spec = importlib.util.spec_from_file_location("rules_page", folder / "rules.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.main() == (folder / "rules.md").read_text()


def test_the_page_on_writing_a_rule_is_true() -> None:
    failures, tests = doctest.testfile(str(README.parent / "docs" / "write_your_own_rule.md"), module_relative=False)
    assert failures == 0
    assert tests > 8


def test_the_page_of_guarantees_names_tests_that_are_there() -> None:
    page = (README.parent / "docs" / "guarantees.md").read_text()
    named = set(re.findall(r"`(tests/\w+\.py)`", page))
    assert len(named) > 12
    assert [name for name in named if not (README.parent / name).exists()] == []


def test_the_conformance_matrix_is_whole() -> None:
    page = (README.parent / "docs" / "conformance.md").read_text()
    cells = [cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.split("|")[2:-1]]
    cells = [cell for cell in cells if cell.startswith("=") or "differ" in cell]
    assert len(cells) == 2 * len(CASES) + 2 * len(FEATURES)
    assert all(cell.startswith("=") for cell in cells)
