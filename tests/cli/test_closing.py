"""What a fit says when it has ended."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

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
