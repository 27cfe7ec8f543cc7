"""The loops of docs/fabric_and_pytorch.md end at the weights that the mixin ends at, from the same start and data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from support.command import script as run_script
from support.pages import blocks
from support.paths import DOCS
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_same import SAM, SAME, LookSAM, Rule, with_sam

PAGE = blocks(DOCS / "fabric_and_pytorch.md")
SCRIPTS = [block.code for block in PAGE if block.language == "python" and not block.file]


class Lit(pl.LightningModule):
    """The page's model, loss and optimizer."""

    def __init__(self, net: nn.Module, momentum: float = 0.0) -> None:
        super().__init__()
        self.net, self.momentum = net, momentum

    @override
    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), x[:, :3].argmax(1))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)


MAIN = """
import os, sys, torch
from train_fabric import train

state = train(int(sys.argv[1]))
if os.environ.get("LOCAL_RANK", "0") == "0":
    torch.save(state, f"{sys.argv[1]}.pt")
"""


def linear() -> nn.Module:
    return nn.Linear(20, 3)


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))


def scaled() -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))], "gradient_clip_val": 1.0}


RECIPES: dict[str, tuple[Callable[[], nn.Module], Rule, float, Callable[[], dict[str, Any]]]] = {
    "plain": (linear, SAME(ckpt=1, rho=0.1), 0.9, dict),
    "state and timing": (linear, LookSAM(rho=0.1, k=5), 0.9, dict),
    "BatchNorm and dropout": (with_batch_norm, SAM(rho=0.1), 0.0, dict),
    "mixed precision": (linear, SAM(rho=0.1), 0.0, scaled),
    "accumulation": (linear, SAM(rho=0.1), 0.0, lambda: {"accumulate_grad_batches": 4}),
}


def fitted(net: nn.Module, rule: Rule, momentum: float, batches: Tensor, **options: Any) -> dict[str, Tensor]:
    module = with_sam(Lit(net, momentum), rule)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    # A generator of its own: the loader would draw from the one that dropout draws from.
    trainer.fit(module, DataLoader(batches, batch_size=None, generator=torch.Generator()))
    return net.state_dict()


def test_there_is_a_comparison_for_each_recipe() -> None:
    assert len(SCRIPTS) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_loop_of_the_page_equals_the_mixin(name: str) -> None:
    net, rule, momentum, options = RECIPES[name]
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(SCRIPTS[list(RECIPES).index(name)], name, "exec"), names)
    torch.manual_seed(0)
    ours, batches = net(), torch.randn((10, 4, 16, 20) if name == "accumulation" else (10, 64, 20))
    start = {key: value.clone() for key, value in ours.state_dict().items()}
    made = fitted(ours, rule, momentum, batches.flatten(0, -3), **options())
    assert names["rule"] == rule
    for key, value in names["model"].state_dict().items():
        torch.testing.assert_close(value, made[key], rtol=0, atol=1e-6)
    # A bias before BatchNorm has no gradient, and stays.
    assert all(not torch.equal(value, start[key]) for key, value in made.items() if key.endswith("weight"))


def test_the_fabric_loop_equals_the_mixin_on_one_and_two_processes(tmp_path: Path) -> None:
    (script,) = [block for block in PAGE if block.file]
    (tmp_path / script.file).write_text(script.code)
    (tmp_path / "main.py").write_text(MAIN)
    for count in (1, 2):
        done = run_script(tmp_path / "main.py", str(count), folder=tmp_path)
        assert done.code == 0, done.err
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    pl.seed_everything(0, verbose=False)
    net = linear()
    made = fitted(net, SAME(ckpt=1, rho=0.1), 0.9, torch.randn(10, 64, 20))
    for key, value in made.items():
        torch.testing.assert_close(one[key], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-6)
