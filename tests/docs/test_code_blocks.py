"""Every code block of the README and of docs/ runs, in the order of its page, as a reader would paste it."""

import doctest
import json
import logging
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.command import command as run_command
from support.pages import Block, blocks
from support.paths import DOCS, ROOT

PAGES = sorted(path for path in [ROOT / "README.md", *DOCS.glob("*.md")] if blocks(path))

NET = next(block.code for block in blocks(DOCS / "index.md") if block.file == "net.py")

KNOWN = {"python", "bash", "yaml", "text"}

ELSEWHERE = {
    "several_machines": "trainer/test_nodes.py",
    "sweep_with_optuna": "docs/test_sweeps.py",
    "sweep_with_ray_tune": "docs/test_sweeps.py",
}
"""Pages that need other libraries or machines, and the tests of what can be run of them."""


def named(page: Path) -> str:
    return page.stem


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with `net.py`."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
    yield tmp_path
    sys.modules.pop("net", None)


def test_the_pages_are_found() -> None:
    assert {"README", "index", "three_ways", "fabric_and_pytorch", "diagnostics"} <= {page.stem for page in PAGES}
    assert {block.language for page in PAGES for block in blocks(page)} <= KNOWN


def test_the_first_page_and_the_readme_show_the_same_module() -> None:
    (readme,) = [block.code for block in blocks(ROOT / "README.md") if block.file == "net.py"]
    assert readme == NET


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in ELSEWHERE], ids=named)
def test_the_blocks_run(page: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.code)
            compile(block.code, block.file, "exec")
        elif block.language == "python" and ">>>" not in block.code:
            exec(compile(block.code, page.name, "exec"), {"__name__": "__main__"})
        elif block.language == "bash" and not block.mark:
            for line in block.lines:
                run(line)
        elif block.language == "yaml":
            run_config(block)
        elif block.language == "text":
            assert set(block.lines) <= set(caplog.messages), f"{page.name}: the code above logs something else"


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in page.read_text()], ids=named)
def test_the_sessions_are_true(page: Path) -> None:
    failures, tests = doctest.testfile(str(page), module_relative=False)
    assert failures == 0
    assert tests > 5


def run(line: str) -> None:
    """Run one command; of those that take long, install or need the checkout, check what can be checked."""
    words = shlex.split(line)
    if words[:2] == ["pip", "install"]:
        check_extras(words)
    elif words[:3] == ["python3", "-m", "venv"] or words[0] == "source":
        return
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        assert (ROOT / words[1]).exists(), f"{line}: there is no such benchmark"
    elif words[:3] == ["PYTHONPATH=tests:benchmarks", "python", "-m"]:
        assert (ROOT / "tests" / f"{words[3].replace('.', '/')}.py").exists(), f"{line}: there is no such script"
    elif words[:2] == ["lightning-same", "study"]:
        run_study(words[2:])
    else:
        assert words[0] == "lightning-same", f"nobody has said how to test {line!r}"
        once = ["--trainer.max_epochs", "1"] if words[1:] == ["fit", "--config", "digits"] else []
        command(*words[1:], *once)


def check_extras(words: list[str]) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for word in words[2:]:
        name, _, chosen = word.rstrip("]").partition("[")
        if chosen:
            assert name in ("lightning-same", "-e .", "."), word
            assert set(chosen.split(",")) <= set(extras), f"{word}: there is no such extra"


def run_study(words: list[str]) -> None:
    """A study's runs are listed, not trained; a report needs finished runs."""
    if words[0] == "report":
        return
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    assert "run" in command("study", *words, "--dry-run")


def run_config(block: Block) -> None:
    """A file of a study lists its runs; any other is a config of `fit`."""
    if "methods" in yaml.safe_load(block.code):
        for name in ("configs", "configs/studies"):
            Path(name).mkdir(exist_ok=True)
        Path("configs/digits.yaml").write_text((ROOT / "configs" / "digits.yaml").read_text())
        Path("configs/studies/page.yaml").write_text(block.code)
        run_study(["--config", "configs/studies/page.yaml".replace("configs/", f"{Path.cwd()}/configs/", 1)])
        return
    Path("page.yaml").write_text(block.code)
    command("fit", "--config", "page.yaml", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir=from_page")


def command(*words: str) -> str:
    done = run_command(*words, folder=Path.cwd())
    assert done.code == 0, f"{json.dumps(words)}\n{done.err}"
    return done.out
