"""A checkpoint file whose optimizer's state is none is named: it is put in place unread, and used a step later."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_same import SAM, with_sam
from lightning_same.cli.fit import main


class Net(BoringModel):
    """Its optimizer has a state."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


@pytest.mark.parametrize(
    "damage", [lambda state: True, lambda state: {"momentum_buffer": "x"}, lambda state: {"momentum_buffer": 1}]
)
def test_an_optimizers_state_that_is_none_is_one_line(
    damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(with_sam(Net(), SAM(0.1)))
    trainer.save_checkpoint("whole.ckpt")
    content = torch.load("whole.ckpt", weights_only=False)
    state = content["optimizer_states"][0]["state"]
    assert state
    for key in state:
        state[key] = damage(state[key])
    torch.save(content, "damaged.ckpt")
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    words = ["fit", f"--model={Net.__module__}.Net", "--sam=SAM", "--trainer.max_epochs=20", *quiet]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--ckpt_path=damaged.ckpt"])
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2, said
    assert said[-1].startswith("lightning-same: --ckpt_path: the file cannot be resumed from: ")
    assert not any("Traceback" in line for line in said)
