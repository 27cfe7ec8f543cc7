"""Tab completion, as the shell asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.speed import slowness

from lightning_same.__main__ import COMMANDS
from lightning_same.cli.completion import RULES
from lightning_same.cli.explanations import CHOICES


def offered(line: str, folder: Path) -> set[str]:
    """What the command offers for the last word of a line."""
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }
    code = "import sys; from lightning_same.__main__ import main\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, cwd=folder, timeout=60 * slowness(), check=False
    )
    return {word.strip() for word in answer.read_text().split("\x0b") if word}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lightning-same s", {"sharpness", "study"}),
        ("lightning-same fit --sam SAME", {"SAME"}),
        ("lightning-same fit --config di", {"digits"}),
        ("lightning-same fit --config ci", {"cifar100_resnet18"}),
        ("lightning-same study --config rad", {"radius", "radius_clean"}),
        ("lightning-same plot --w", {"--watch"}),
        ("lightning-same fit --two_pass.ascent=l", {"--two_pass.ascent=local"}),
        ("lightning-same study --ra", {"--ray"}),
        ("lightning-same study --cpus", {"--cpus-per-run"}),
        ("lightning-same doctor --f", {"--full"}),
        ("lightning-same sharpness --pro", {"--probe_batches"}),
        ("lightning-same configs copy studies/rad", {"studies/radius", "studies/radius_clean"}),
        ("lightning-same ", {*COMMANDS, "-h", "--help"}),
    ],
)
def test_what_a_word_may_become(line: str, words: set[str], tmp_path: Path) -> None:
    assert offered(line, tmp_path) == words


def test_all_rules_are_offered() -> None:
    assert set(RULES) == set(CHOICES["rule"]) - {"Rule"}
