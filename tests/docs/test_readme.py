"""The README: what continuous integration runs of it is there, its options work, and its links hold on PyPI."""

import re
import shlex
import tomllib
from pathlib import Path

from support.command import command
from support.pages import blocks
from support.paths import ROOT

README = ROOT / "README.md"


def test_the_marked_commands_are_there() -> None:
    marks = [block.mark for block in blocks(README) if block.mark]
    assert marks == ["quickstart-command", "test-command", "file: net.py"]


def test_the_options_in_the_text_run(tmp_path: Path) -> None:
    options = re.findall(r"`(--[^` ]+[ =][^`]+)`", README.read_text())
    assert options[:2] == ["--sam SAM", "--sam null"]
    words = [word for option in options[2:] for word in shlex.split(option)]
    digits = ["fit", "--config", str(ROOT / "configs" / "digits.yaml"), "--trainer.max_epochs", "1"]
    done = command(*digits, *words, folder=tmp_path)
    assert done.code == 0, done.err
    (config,) = tmp_path.rglob("config.yaml")
    assert all(word in config.read_text() for word in ("CSVLogger", "ckpt: 3"))


def test_links_are_absolute_and_lead_to_what_is_here() -> None:
    """PyPI shows the page without the files beside it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        urls = tomllib.load(file)["project"]["urls"]
    links = re.findall(r"\]\(([^)\s]+)\)", README.read_text())
    assert len(links) > 10
    places = {
        urls["Documentation"]: "docs",
        urls["Source"] + "/blob/main/": "",
        urls["Source"].replace("github.com", "raw.githubusercontent.com") + "/main/": "",
    }
    ours = [(link, place, folder) for link in links for place, folder in places.items() if link.startswith(place)]
    others = set(links) - {link for link, *_ in ours}
    assert len(ours) > 8
    assert all(link.startswith(("https://arxiv.org/", "https://lightning.ai/")) for link in others), others
    for link, place, folder in ours:
        rest = link.removeprefix(place).partition("#")[0]
        if folder:
            target = ROOT / folder / f"{rest.rstrip('/') or 'index'}.md"
            assert target.exists(), link
        else:
            assert (ROOT / rest).exists(), link


def test_the_supported_versions_are_those_of_the_metadata() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lower = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(project["dependencies"]), re.MULTILINE))
    lower["python"] = project["requires-python"].removeprefix(">=")
    newest = dict(re.findall(r"^(\w+)==(\d+\.\d+)", (ROOT / ".ci" / "constraints.txt").read_text(), re.MULTILINE))
    newest["python"] = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)[-1]
    for page in (README, ROOT / "docs" / "index.md"):
        rows = re.findall(r"^\| (Python|PyTorch|Lightning) \| ([\d.]+) \| ([\d.]+) \|", page.read_text(), re.MULTILINE)
        assert [name for name, *_ in rows] == ["Python", "PyTorch", "Lightning"]
        for name, oldest, tested in rows:
            key = "torch" if name == "PyTorch" else name.lower()
            assert (oldest, tested) == (lower[key], newest[key]), f"{page.name}: {name}"
