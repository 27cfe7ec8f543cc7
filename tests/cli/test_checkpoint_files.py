"""A wrong checkpoint file is named, with what to do, by every command that takes one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from support.fits import LIGHTNING

from lightning_same.cli.fit import main
from lightning_same.cli.sharpness import main as sharpness

BORING = f"{BoringModel.__module__}.BoringModel"
QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]


class Sized(BoringModel):
    """Has an argument that the checkpoint file keeps."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()


class Narrow(BoringModel):
    """Has weights of other shapes than `BoringModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)


def lightnings(**more: Any) -> dict[str, Any]:
    return {"state_dict": BoringModel().state_dict(), "pytorch-lightning_version": "2.6.6", **more}


CONTENTS: dict[str, Any] = {
    "text.ckpt": b"hello",
    "empty.ckpt": b"",
    "pickled.ckpt": torch.nn.Linear(2, 2),
    "list.ckpt": [1, 2],
    "bare.ckpt": {"weight": torch.ones(1)},
    "whole.ckpt": lightnings(),
    "sized.ckpt": lightnings(hyper_parameters={"_class_path": f"{__name__}.Sized", "width": 3}),
}


@pytest.fixture(autouse=True)
def _with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-same"])
    Path("folder").mkdir()
    for name, content in CONTENTS.items():
        Path(name).write_bytes(content) if isinstance(content, bytes) else torch.save(content, name)
    Path("cut.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:500])


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> list[str]:
    with pytest.raises(SystemExit) as stop:
        sharpness(words[1:]) if words[0] == "sharpness" else main([*words, *QUIET])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-2:]


@pytest.mark.parametrize("command", ["validate", "sharpness"])
@pytest.mark.parametrize(
    ("file", "what", "to_do"),
    [
        ("none.ckpt", "there is no file none.ckpt.", "A fit says at its end"),
        ("text.ckpt", "text.ckpt is no checkpoint file, or not a whole one.", "A fit says at its end"),
        ("cut.ckpt", "cut.ckpt is no checkpoint file, or not a whole one.", "A fit says at its end"),
        ("empty.ckpt", "empty.ckpt is empty.", "A fit says at its end"),
        ("folder", "folder is a folder.", "Name the file in it"),
        ("/dev/null", "/dev/null is not a regular file.", "A fit says at its end"),
        ("pickled.ckpt", "pickled.ckpt holds more than weights", "weights_only"),
        ("list.ckpt", "list.ckpt ", "A fit says at its end"),
    ],
)
def test_what_is_no_checkpoint_file(
    capsys: pytest.CaptureFixture[str], command: str, file: str, what: str, to_do: str
) -> None:
    if LIGHTNING < (2, 6) and command == "validate" and file in ("pickled.ckpt", "list.ckpt"):
        pytest.skip("this release of Lightning unpickles whatever a file holds")
    lines = refused(capsys, [command, f"--model={BORING}", f"--ckpt_path={file}"])
    assert f"--ckpt_path: {what}" in lines[0]
    assert to_do in lines[1]


@pytest.mark.parametrize("command", ["validate", "sharpness"])
def test_the_weights_of_another_model(capsys: pytest.CaptureFixture[str], command: str) -> None:
    lines = refused(capsys, [command, f"--model={__name__}.Narrow", "--ckpt_path=whole.ckpt"])
    assert "whole.ckpt holds the weights of another model than Narrow:" in lines[0]
    assert "layer.weight" in lines[0]
    assert "config.yaml" in lines[1]
    if command == "sharpness":
        shapes = "`layer.weight` has the shape (2, 32) in the file and (1, 32) in the model"
        assert lines[0].endswith(f"{shapes}, and 1 more differ.")  # the bias


def test_a_file_that_lightning_has_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, ["test", f"--model={BORING}", "--ckpt_path=bare.ckpt"])
    assert "--ckpt_path: bare.ckpt is no checkpoint file of Lightning's." in lines[0]


def test_best_without_any_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, ["test", f"--model={BORING}", "--ckpt_path=best", "--trainer.enable_checkpointing=false"])
    assert "--ckpt_path: " in lines[0]
    assert "best" in lines[0]


reads_arguments = pytest.mark.skipif(
    not hasattr(LightningCLI, "_parse_ckpt_path"), reason="this release of Lightning takes no arguments from a file"
)


@reads_arguments
def test_the_file_of_another_class(capsys: pytest.CaptureFixture[str]) -> None:
    # Lightning builds the file's class, without a word.
    lines = refused(capsys, ["validate", f"--model={BORING}", "--ckpt_path=sized.ckpt"])
    assert lines[0] == f"error: --ckpt_path: the file's model is {__name__}.Sized, not {BORING}."
    assert f"--model {__name__}.Sized" in lines[1]


@reads_arguments
@pytest.mark.parametrize("width", ["2", "3", None])
@pytest.mark.parametrize("option", ["--model.width", "--model.init_args.width"])
def test_an_argument_that_the_file_replaces_is_told(
    capsys: pytest.CaptureFixture[str], option: str, width: str | None
) -> None:
    given = [] if width is None else [f"{option}={width}"]
    model = [f"--model={__name__}.Sized", "--ckpt_path=sized.ckpt"]
    main(["validate", *model, *given, *QUIET])
    told = "--model.width 2 is not used: the model in the checkpoint file has 3." in capsys.readouterr().err
    assert told == (width == "2")
