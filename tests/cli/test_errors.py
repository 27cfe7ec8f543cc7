"""What is wrong is said where it is, in one line, and what to do in another."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from support.nets import Plain

from lightning_same.cli.fit import SAMCLI

BORING = "lightning.pytorch.demos.boring_classes.BoringModel"


class NoTestStep(Plain):
    """Cannot be tested."""


class NoTestData(Plain):
    """Has nothing to be tested on."""

    def test_step(self, batch: Any, batch_idx: int) -> None: ...


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["lightning-same"])


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    with pytest.raises(SystemExit) as stop:
        SAMCLI(args=["fit", *args, "--trainer.accelerator=cpu", "--trainer.max_epochs=1"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    return err[err.index("error: ") :].strip().splitlines()


@pytest.mark.parametrize(
    ("args", "what", "to_do"),
    [
        (["--sam=SAM", "--sam.rho=abc"], "--sam.rho must be a number or a schedule, got 'abc'.", "Cosine"),
        (["--sam=SAME", "--sam.ckpt=1,3"], "--sam.ckpt must be a whole number or a list, got '1,3'.", '"[1,3]"'),
        (["--sam=SAME", "--sam.condition=x"], "--sam.condition must be a number, got 'x'.", "--sam.help SAME"),
        (["--sam=SAM", "--sam.timing=Every", "--sam.timing.k=x"], "--sam.timing.k must be a whole number", "Every"),
        (["--trainer.max_steps=x"], "--trainer.max_steps must be a whole number, got 'x'.", None),
    ],
)
def test_a_value_of_another_type(
    capsys: pytest.CaptureFixture[str], args: list[str], what: str, to_do: str | None
) -> None:
    lines = refused(capsys, f"--model={BORING}", *args)
    assert lines[0].startswith(f"error: {what}")
    assert len(lines) == (1 if to_do is None else 2)
    assert to_do is None or to_do in lines[1]


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("LitNet", "--model: there is no class 'LitNet'."),
        ("no_module.LitNet", "--model: no_module.LitNet: No module named 'no_module'."),
    ],
)
def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str], model: str, what: str) -> None:
    lines = refused(capsys, f"--model={model}")
    assert lines[0] == f"error: {what}"
    assert "the folder where the command is given" in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(("kind", "lacks"), [(NoTestStep, "test_step"), (NoTestData, "test_dataloader")])
def test_what_cannot_be_tested_is_not_trained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type, lacks: str
) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", lambda *args, **options: pytest.fail("it was trained"))
    lines = refused(capsys, f"--model={__name__}.{kind.__name__}", "--test_after_fit=true")
    assert lines == [
        f"error: --test_after_fit: {kind.__name__} has no `{lacks}`.",
        "       Leave --test_after_fit out, or define it.",
    ]
