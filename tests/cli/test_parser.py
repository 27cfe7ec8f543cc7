"""The commands of few options say what is wrong with one, and what to do, without the usage."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_same.cli.configs import main as configs
from lightning_same.cli.doctor import main as doctor
from lightning_same.cli.plot import main as plot


@pytest.mark.parametrize(
    ("command", "words", "what", "to_do"),
    [
        (plot, [], "RUN is missing.", "`lightning-same plot --help` explains it."),
        (plot, [".", "--lables", "A"], "there is no option --lables.", "Did you mean --labels?"),
        (plot, [".", "--metric"], "--metric needs a value.", "--help"),
        (plot, [".", "--interval", "x"], "--interval must be seconds > 0, got x.", ""),
        (plot, [".", "--interval"], "--interval needs a value.", "--help"),
        (plot, [".", "--interval", "0"], "--interval must be seconds > 0, got 0.", ""),
        (plot, [".", "--labels", "A", "B"], "--labels must name every run: got 2 labels for 1 runs.", ""),
        (plot, [".", ".", "--labels", "A", "A"], "--labels must differ, got A, A.", ""),
        (configs, ["--too", "here"], "there is no option --too.", "Did you mean --to?"),
        (configs, ["cpy"], "command must be copy, got 'cpy'.", "Did you mean copy?"),
        (doctor, ["more"], "'more' is not expected here.", "--help"),
        (doctor, ["--out"], "--out needs a value.", "--help"),
    ],
)
def test_an_error_is_what_and_what_to_do(
    capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], None], words: list[str], what: str, to_do: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(words)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(f": error: {what}")
    assert len(lines) == 1 + bool(to_do)
    assert to_do in lines[-1]


@pytest.mark.parametrize(
    ("command", "words", "what", "to_do"),
    [
        (doctor, ["--out", "none/page.md"], "--out: none/page.md cannot be written.", "Name a file"),
        (configs, ["copy", "digits", "--to", "file"], "file cannot be written to: ", "--to"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_done(
    capsys: pytest.CaptureFixture[str],
    command: Callable[[list[str]], None],
    words: list[str],
    what: str,
    to_do: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    with pytest.raises(SystemExit) as stop:
        command(words)
    assert stop.value.code == 2
    seen = capsys.readouterr()
    lines = seen.err.splitlines()
    assert what in lines[0]
    assert to_do in lines[1]
    assert len(lines) == 2
    assert not seen.out
