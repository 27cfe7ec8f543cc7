"""Parameters that are not trained are copied once for all micro-batches of a step, unless somebody writes to them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.fits import differences, fit
from support.launches import Images, launched
from support.nets import Plain, build
from torch import Tensor, nn

from lightning_same import SAM, with_sam
from lightning_same.replay.frozen import FrozenCopies
from lightning_same.replay.tensor_copies import TensorCopies


def write(param: Tensor) -> None:
    with torch.no_grad():
        param.add_(1)


def write_unseen(param: Tensor) -> None:
    param.data.add_(1)


def replace(param: Tensor) -> None:
    param.data = param.data + 1


WRITES: list[Callable[[Tensor], None]] = [write, write_unseen, replace]


@pytest.mark.parametrize("change", WRITES, ids=lambda change: change.__name__)
def test_copies_are_shared_until_somebody_writes(change: Callable[[Tensor], None]) -> None:
    params, frozen = [nn.Parameter(torch.zeros(3), requires_grad=False), nn.Parameter(torch.ones(2))], FrozenCopies()
    first = frozen.of(params)
    assert frozen.of(params) is first
    change(params[1])
    second = frozen.of(params)
    assert second is not first
    assert frozen.of(params) is second
    assert frozen.of(params[:1]) is not second
    first.restore()
    assert params[1].tolist() == [1, 1]
    frozen.forget()
    assert frozen.of(params) is not second


@pytest.mark.parametrize("unseen", [True, False])
def test_an_accelerator_compares_values_in_the_first_step_alone(unseen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing can be compared, so the answer is given here."""
    asked: list[bool] = []

    def differ(copies: TensorCopies) -> bool:
        asked.append(unseen)
        return unseen

    monkeypatch.setattr(TensorCopies, "differ", differ)
    params, frozen = [nn.Parameter(torch.zeros(3, device="meta"))], FrozenCopies()
    for step in range(3):
        shared = len({id(copies) for copies in [frozen.of(params) for _ in range(3)]})
        assert shared == (3 if unseen else 1), step
        frozen.forget()
    assert asked == ([True] if unseen else [False, False])
    first = frozen.of(params)
    write(params[0])
    assert frozen.of(params) is not first, "the version counter tells without a comparison"


def frozen_copied(micro_batches: int) -> Counter[str]:
    """Copies of lists in a window, which holds frozen layers without buffers."""

    def make() -> nn.Module:
        frozen = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)).requires_grad_(False)
        return nn.Sequential(frozen, nn.Flatten(), nn.Linear(192, 10))

    class Accumulates(Images):
        def on_train_start(self) -> None:
            self.trainer.accumulate_grad_batches = micro_batches

    module = Accumulates(make, steps=3 * micro_batches)
    return sum(launched(module, SAM(), settling=2 * micro_batches), Counter())


def test_more_micro_batches_take_no_more_copies() -> None:
    one, four = frozen_copied(1)["cat"], frozen_copied(4)["cat"]
    assert one == four == 2, "before the first pass, and before the second"


class Teacher(Plain):
    """Moves a teacher in each training step, in one of the ways in which people do."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.teacher = nn.Linear(6, 3).requires_grad_(False)
        self.change = change
        self.seen = Seen()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        value = self.teacher.weight.data * 0.75 + self.layers[0].weight.data[:3] * 0.25
        if self.change == "in place":
            with torch.no_grad():
                self.teacher.weight.copy_(value)
        elif self.change == "unseen":
            self.teacher.weight.data.copy_(value)
        else:
            self.teacher.weight.data = value
        loss = super().training_step(batch, batch_idx) + (self.teacher(batch[0]) - self(batch[0])).square().mean()
        self.seen.losses.append(loss.item())
        return loss


class Seen:
    """No list of the module's own, which would be put back."""

    def __init__(self) -> None:
        self.losses: list[float] = []


@pytest.mark.parametrize("change", ["in place", "unseen", "replaced"])
def test_a_teacher_that_each_micro_batch_moves_is_replayed(change: str) -> None:
    def trained(rho: float | None) -> Teacher:
        module: Any = build(Teacher, change)
        if rho is not None:
            module = with_sam(module, SAM(rho), check_replay=False)
        fit(module, max_epochs=1, accumulate_grad_batches=3)
        return module

    plain, ours = trained(None), trained(0.0)
    assert differences(dict(plain.state_dict()), dict(ours.state_dict())) == []
    # Of each window: three losses of pass one, and the same three of pass two.
    windows = torch.tensor(ours.seen.losses).view(2, 2, 3)
    assert torch.equal(windows[:, 0], windows[:, 1])
    assert windows.flatten().unique().numel() == 6
