"""MomentumSAM needs to find the optimizer's momentum, or it would be plain training without a word."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.fits import fit
from support.nets import Plain, build

from lightning_same import MomentumSAM, with_sam


class OtherName(torch.optim.Adam):
    """Keeps its momentum under a name of its own, as 8-bit optimizers do."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for state in self.state.values():
            state["exp_avg"] = state.pop("state1")
        super().step()
        for state in self.state.values():
            state["state1"] = state.pop("exp_avg")
        return loss


class With(Plain):
    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def test_a_momentum_of_another_name_is_refused_once_there_is_one() -> None:
    module = with_sam(build(With, OtherName), MomentumSAM(0.3))
    with pytest.raises(ValueError, match=r"momentum of OtherName, and that keeps 'step', .*'state1'.* Use torch's SGD"):
        fit(module, max_epochs=1)
    assert module.trainer.global_step == 1


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    "optimizer", [sgd, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam], ids=lambda kind: kind.__name__
)
def test_torchs_optimizers_have_one(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    module = with_sam(build(With, optimizer), MomentumSAM(0.3))
    fit(module, max_epochs=1)
    assert module.trainer.global_step == 6
