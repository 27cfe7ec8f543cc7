"""Parameters that only one of the passes reaches, and those of nobody's optimizer."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import fit
from support.nets import Plain, TwoOptimizers, build
from torch import Tensor, nn

from lightning_same import SAM, SAMMixin, with_sam
from lightning_same.rules.timing import Every


class Branches(Plain):
    """Two scalars take part in the loss: ``first`` in pass one alone, ``second`` in pass two alone."""

    def __init__(self) -> None:
        super().__init__(lr=0.5)
        self.first, self.second = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(2.0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + (3 * self.first if self.sam_pass == 1 else 5 * self.second)


@pytest.mark.parametrize("manual", [False, True])
def test_what_pass_two_does_not_reach_is_stepped_with_a_gradient_of_zero(manual: bool) -> None:
    """So weight decay acts on it, and w - lr * decay * w is left: 2 * (1 - 0.5 * 0.001)."""

    class Manual(Branches):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.two_pass_step(lambda: Branches.training_step(self, batch, batch_idx), self.optimizers())

    module = with_sam(build(Manual if manual else Branches), SAM(0.3), check_replay=False)
    module.automatic_optimization = not manual
    fit(module, max_steps=1)
    assert module.first.item() == pytest.approx(2 * (1 - 0.5 * 1e-3), rel=1e-6)
    assert module.first.grad is not None
    # Pass one has not reached it, so that e leaves it alone, and s is its gradient.
    assert module.second.item() == pytest.approx(2 - 0.5 * (5 + 2e-3), rel=1e-6)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("reached_in", [1, 2])
def test_parameters_of_no_optimizer_keep_what_pass_one_has_left(reached_in: int, manual: bool) -> None:
    """A gradient of 7 for each batch in which pass one reaches it, and none at all if only pass two does."""

    class Foreign(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.foreign = nn.Parameter(torch.tensor(1.0))

        def loss(self, batch: Any) -> Tensor:
            loss = Plain.training_step(self, batch, 0)
            return loss + 7 * self.foreign if self.sam_pass == reached_in else loss

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.automatic_optimization:
                return self.loss(batch)
            return self.two_pass_step(lambda: self.loss(batch), self.optimizers())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.layers.parameters(), lr=0.1)

    class See(Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            seen.append(None if pl_module.foreign.grad is None else pl_module.foreign.grad.item())
            pl_module.foreign.grad = None

    seen: list[float | None] = []
    module = with_sam(build(Foreign), SAM(0.3), check_replay=False)
    module.automatic_optimization = not manual
    fit(module, max_epochs=1, callbacks=[See()])
    assert seen == [7.0 if reached_in == 1 else None] * 6


def test_a_timing_counts_the_batches_of_manual_optimization() -> None:
    """Not the steps of all optimizers: with two of them, every second of those would be the same optimizer's."""
    passes: list[list[int]] = []

    class Manual(SAMMixin, TwoOptimizers):
        sam = SAM(0.3, timing=Every(2))

        def training_step(self, batch: Any, batch_idx: int) -> None:
            passes.append([])
            super().training_step(batch, batch_idx)

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            def counted() -> Tensor:
                passes[-1].append(self.sam_pass)
                return loss_fn()

            self.two_pass_step(counted, optimizer)

    fit(build(Manual), max_epochs=1)
    assert passes == [[1, 2, 1, 2], [0, 0]] * 3


def test_pass_two_finds_the_weights_of_another_optimizer_as_pass_one_has_found_them() -> None:
    """A loss that shrinks them, once for each step and not once for each pass."""
    seen: list[float] = []

    class Shrinks(SAMMixin, TwoOptimizers):
        sam = SAM(0.3)

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            def loss() -> Tensor:
                seen.append(self.scale.item())
                with torch.no_grad():
                    self.scale.mul_(0.5)
                return loss_fn()

            if optimizer.optimizer is self.trainer.optimizers[0]:
                self.two_pass_step(loss, optimizer)

        def configure_optimizers(self) -> Any:
            first, _ = super().configure_optimizers()
            return first, torch.optim.SGD([self.scale], lr=0.1)

    module = build(Shrinks)
    fit(module, max_steps=3)
    assert seen == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert module.scale.item() == 0.125
