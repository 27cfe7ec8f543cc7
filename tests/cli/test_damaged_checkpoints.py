"""A checkpoint file that was changed is named: some of it is put in place unread, and used later."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_same import LookSAM, with_sam
from lightning_same.cli.fit import main


class Net(BoringModel):
    """Its optimizer has a state."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(with_sam(Net(), LookSAM(0.1)))
    trainer.save_checkpoint(path)
    return path


def momentum(value: Any) -> Callable[[dict[str, Any]], None]:
    def damage(content: dict[str, Any]) -> None:
        state = content["optimizer_states"][0]["state"]
        assert state
        for key in state:
            state[key] = value

    return damage


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def damage(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        assert keys[-1] in content if isinstance(content, dict) else content[keys[-1]]
        content[keys[-1]] = value

    return damage


def without_momentum(content: dict[str, Any]) -> None:
    del content["optimizer_states"][0]["param_groups"][0]["momentum"]


LOOPS = ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "zero_grad", "total")
MEMORY = ("lightning_same", "memories", 0)
KEPT = (*MEMORY, "tensors", "looksam.orthogonal")
REFUSED = "--ckpt_path: the file cannot be resumed from: "


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (momentum(True), REFUSED),
        (momentum({"momentum_buffer": "x"}), REFUSED),
        (momentum({"momentum_buffer": 1}), REFUSED),
        (without_momentum, f"{REFUSED}KeyError: 'momentum'"),
        (at(*LOOPS, "completed", value={"~": -1}), REFUSED),
        (
            at("lightning_same", value=[1]),
            f"{REFUSED}ValueError: The checkpoint file's entry `lightning_same` must be a",
        ),
        (
            at("lightning_same", "memories", value=3),
            "The entry `lightning_same` of the checkpoint file must hold a list",
        ),
        (at(*MEMORY, value=[None]), "its memory must hold `numbers` and `tensors`, got [None]"),
        (at(*MEMORY, "numbers", value={"a": "b"}), "`numbers` must be numbers by name, got a mapping with ['a']"),
        (at(*MEMORY, "tensors", value=None), "`tensors` must be tensors by name, got None"),
        (at(*KEPT, value=1), "`looksam.orthogonal` must hold a tensor for each parameter, got 1"),
        (
            at(*KEPT, "layer.weight", value="x"),
            "`looksam.orthogonal` of layer.weight must be a tensor of shape (2, 32)",
        ),
        (at(*KEPT, "layer.weight", value=torch.ones(1)), "must be a tensor of shape (2, 32), got one of shape (1,)"),
    ],
)
def test_a_damaged_checkpoint_file_is_one_line(
    damage: Callable[[dict[str, Any]], None],
    told: str,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(whole, weights_only=False)
    damage(content)
    torch.save(content, "damaged.ckpt")
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    words = ["fit", f"--model={Net.__module__}.Net", "--sam=LookSAM", "--trainer.max_epochs=20", *quiet]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--ckpt_path=damaged.ckpt"])
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2, said
    assert said[-1].startswith("lightning-same: ")
    assert told in said[-1]
    assert not any("Traceback" in line for line in said)
