"""How a command ends: an exit code, and on the error stream one line, or two, or a traceback."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_same import SAM
from lightning_same.cli.errors import UserError, one_line, say, told


def users_own() -> None:
    raise ValueError("of the user's own")


def refused_in_the_users_own() -> None:
    SAM(rho=-1)


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


NO_FILE = FileNotFoundError(errno.ENOENT, "No such file or directory", "none.yaml")


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (raises(UserError("a is wrong.")), 2, "do: a is wrong.\n"),
        (raises(UserError("a\nis wrong.", "Take b.")), 2, "do: a is wrong.\n       Take b.\n"),
        (raises(KeyboardInterrupt()), 130, "do: interrupted.\n"),
        (raises(NO_FILE), 2, "do: none.yaml: No such file or directory.\n"),
        (raises(OSError("no space")), 2, "do: no space.\n"),
    ],
)
def test_what_the_user_can_change_is_said_without_a_traceback(
    capsys: pytest.CaptureFixture[str], act: Callable[[], None], code: int, said: str
) -> None:
    with pytest.raises(SystemExit) as stop, told("do"):
        act()
    assert stop.value.code == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize("act", [users_own, refused_in_the_users_own])
def test_an_unforeseen_error_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], act: Callable[[], None], to_file: bool
) -> None:
    with pytest.raises(SystemExit) as stop, told("do", traceback_to_file=to_file):
        act()
    assert stop.value.code == 70
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert last.startswith("do: an error that was not foreseen, ValueError: ")
    where = last.rpartition("Traceback: ")[2]
    text = err
    if to_file:
        assert len(err.splitlines()) == 1
        text = Path(where).read_text(encoding="utf-8")
        Path(where).unlink()
    else:
        assert where == "above"
    assert f"in {act.__name__}" in text


def test_an_error_of_the_operating_system_in_the_users_own_code_is_unforeseen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop, told("do", traceback_to_file=False):
        raises(NO_FILE)()
    assert stop.value.code == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_what_went_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with told("do"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_long_message_is_cut_in_its_middle() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    text = "x" * 30 + "y" * 30
    assert one_line(text, 60) == text
    assert one_line(text, 20) == "x" * 10 + " [...] " + "y" * 10


def test_a_line_is_written_whatever_it_holds(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ascii:
        encoding = "ascii"

        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> None:
            self.text += text.encode("ascii").decode()

    stream = Ascii()
    monkeypatch.setattr(sys, "stderr", stream)
    say("ü is none")
    assert stream.text == "\\xfc is none\n"
