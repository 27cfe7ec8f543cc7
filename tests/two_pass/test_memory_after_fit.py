"""What two passes leave in memory when the fit is over."""

import gc
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from support.fits import fit
from support.nets import Plain, build
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lightning_same import SAM, SAME, FriendlySAM, GradientNormMonitor, LookSAM, Rule, VaSSO, with_sam
from lightning_same.two_pass.callback import TwoPassCallback
from lightning_same.two_pass.fit import Fit


class Wide(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 500), nn.BatchNorm1d(500), nn.Linear(500, 3))


pytestmark = pytest.mark.usefixtures("earlier_objects")


def storages() -> dict[int, int]:
    """Bytes of all tensors that are alive, by address."""
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in alive if not part.is_meta}


@cache
def left(rule: Rule | None) -> tuple[int, int]:
    """Bytes that are there after a fit and were not before, and those of the parameters."""
    before = storages()
    module: Any = build(Wide)
    if rule is not None:
        module = with_sam(module, rule)
    made = fit(module, max_epochs=1, callbacks=[GradientNormMonitor(every_n_steps=1)])
    after = storages()
    assert made.global_step == 6
    new = sum(size for place, size in after.items() if before.get(place) != size)
    return new, sum(param.nbytes for param in module.parameters())


COPIES = [(SAM(), 0), (SAME(), 0), (VaSSO(), 1), (FriendlySAM(), 1), (LookSAM(), 1)]


@pytest.mark.parametrize(("rule", "copies"), COPIES, ids=[repr(rule) for rule, _ in COPIES])
def test_nothing_is_kept_but_what_a_checkpoint_file_written_now_must_hold(rule: Rule, copies: int) -> None:
    plain, size = left(None)
    ours, _ = left(rule)
    assert ours - plain == pytest.approx(copies * size, abs=2000)  # Values that the monitors have logged are there too.


def test_what_is_kept_leaves_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        on_device = torch.ones(2, device="cuda:0")
    state = {"memories": [{"numbers": {"x": 1.0}, "tensors": {"vasso.average": {"w": on_device}}}]}
    monkeypatch.setattr(Fit, "state_dict", lambda self: state)
    module = with_sam(build(Plain), VaSSO())
    made = fit(module, max_epochs=1)
    [callback] = [each for each in made.callbacks if isinstance(each, TwoPassCallback)]
    [memory] = callback._left["memories"]
    assert memory["tensors"]["vasso.average"]["w"].device.type == "cpu"
    assert memory["numbers"] == {"x": 1.0}


class LetsGo(Plain):
    """Gives up what it has kept, between the steps of training."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.kept = [torch.zeros(1)]
        self.is_gone: list[bool] = []
        setattr(self, hook, self.let_go)

    def let_go(self) -> None:
        former = weakref.ref(self.kept[0])
        self.kept = [torch.zeros(1)]
        self.is_gone.append(former() is None)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


@pytest.mark.parametrize(("hook", "validates"), [("on_train_epoch_end", 0), ("on_validation_start", 1)])
def test_what_a_module_lets_go_of_between_steps_is_gone(hook: str, validates: int) -> None:
    module = with_sam(build(LetsGo, hook), SAM())
    fit(module, max_epochs=2, val_check_interval=0.5, limit_val_batches=validates, num_sanity_val_steps=0)
    assert module.is_gone == [True] * (4 if validates else 2)
