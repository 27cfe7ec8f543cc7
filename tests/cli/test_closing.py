"""What a fit says when it has ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_same.cli.closing import say_last, say_tested, say_where
from lightning_same.cli.fit import SAMCLI


class Worse(BoringModel):
    """Is best in its first epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", torch.tensor(0.840123456 - 0.25 * self.current_epoch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("hit", torch.tensor(0.916666666))


def test_last_and_best_are_told_apart(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-same"])
    keeper = "{class_path: ModelCheckpoint, init_args: {monitor: score, mode: max}}"
    quick = [f"--trainer.limit_{kind}_batches=1" for kind in ("train", "val", "test")]
    quick += [f"--trainer.enable_{part}=false" for part in ("progress_bar", "model_summary")]
    SAMCLI(
        args=[
            "fit",
            f"--model={__name__}.Worse",
            f"--trainer.callbacks=[{keeper}]",
            "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: ., name: mine}}",
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=2",
            "--test_after_fit=true",
            *quick,
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    run = str(Path("mine", "version_0"))
    assert [line for line in lines if "weights" in line or "mine" in line] == [
        "Last weights, after 2 epochs: score 0.5901",
        "Test of the best weights, after 1 epoch (highest score 0.8401): hit 0.9167",
        f"Checkpoint file: {Path(run, 'checkpoints', 'epoch=0-step=1.ckpt')}",
        f"Curves: {run}. To draw them: lightning-same plot {run}",
    ]
    assert Path(run, "metrics.csv").is_file()


def keeper(path: str, monitor: str | None = None, mode: str = "min", score: float | None = None) -> ModelCheckpoint:
    kept = ModelCheckpoint(monitor=monitor, mode=mode)
    kept.best_model_path = path
    kept.best_model_score = None if score is None else torch.tensor(score)
    return kept


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "Test of the last weights"),
        (keeper(""), "Test of the last weights"),
        (keeper("runs/epoch=2-step=24.ckpt"), "Test of the newest checkpoint, after 3 epochs"),
        (
            keeper("epoch=0-step=8.ckpt", "loss", "min", 0.25),
            "Test of the best weights, after 1 epoch (lowest loss 0.25)",
        ),
        (keeper("mine.ckpt", "hits", "max", 0.75), "Test of the best weights (highest hits 0.75)"),
    ],
)
def test_it_says_which_weights_were_tested(capsys: pytest.CaptureFixture[str], kept: Any, said: str) -> None:
    trainer: Any = SimpleNamespace(checkpoint_callback=kept)
    say_tested(trainer, [{"hit": 0.916666}, {}, {"cost": 1234567.0}])
    say_tested(trainer, [{}])
    assert capsys.readouterr().out.splitlines() == [
        f"{said}: hit 0.9167, cost 1.235e+06",
        f"{said}: the test loop has logged nothing",
    ]


def test_the_last_value_is_said_if_one_was_monitored(capsys: pytest.CaptureFixture[str]) -> None:
    for monitor in (None, "never logged", "loss"):
        metrics = {"loss": torch.tensor(0.5)}
        say_last(
            SimpleNamespace(  # type: ignore[arg-type]
                checkpoint_callback=keeper("", monitor), callback_metrics=metrics, current_epoch=1
            )
        )
    assert capsys.readouterr().out == "Last weights, after 1 epoch: loss 0.5\n"


def test_curves_are_where_a_logger_has_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    written, unwritten = CSVLogger(elsewhere, "run"), CSVLogger(here, "none")
    Path(written.log_dir).mkdir(parents=True)
    say_where(SimpleNamespace(checkpoint_callback=None, loggers=[unwritten, written, written]))  # type: ignore[arg-type]
    run = elsewhere / "run" / "version_0"
    assert capsys.readouterr().out == f"Curves: {run}. To draw them: lightning-same plot {run}\n"
