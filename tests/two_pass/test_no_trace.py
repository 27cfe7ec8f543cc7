"""Pass two sees what pass one saw, and leaves no trace."""

import weakref
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import RowLogger, differences, fit, observed_fit, weights
from support.nets import Everything, Plain, build
from support.passes import FORCED, EverythingSAM, PlainSAM, count_passes
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import ASAM, SAM, SAME, CheckpointFractionMonitor, Rule, with_sam
from lightning_same.gradients.pair import TwoGradients


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-scaled"])
def test_forced_second_pass_at_rho_zero_is_plain_training(tmp_path: Path, accumulate: int, precision: Any) -> None:
    options = {"accumulate_grad_batches": accumulate, "precision": precision, "gradient_clip_val": 0.5}
    plain = observed_fit(build(Everything), tmp_path, **options)
    forced = build(EverythingSAM)
    forced.sam = FORCED
    passes = count_passes(forced)
    sam = observed_fit(forced, tmp_path, **options)
    assert passes.count(2) == 12
    assert len(plain["rows"]) > 4
    assert differences(plain, sam) == []


def test_pass_two_replays_pass_one() -> None:
    """At rho = 0 both passes compute the same output, loss and gradient, so s - g is due to e alone."""
    outputs: list[Tensor] = []
    seen: list[tuple[Tensor, ...]] = []

    class Watch(Callback):
        def on_two_pass_gradients(self, trainer: Any, module: Any, gradients: TwoGradients) -> None:
            seen.append(tuple(torch.cat([g.flatten() for g in each]) for each in gradients[1:3]))

    module = build(EverythingSAM)
    module.sam = FORCED
    module.layers.register_forward_hook(lambda _, __, out: outputs.append(out.detach().clone()))
    fit(module, callbacks=[Watch()], limit_val_batches=0)
    assert len(seen) == 12
    assert all(torch.equal(g, s) for g, s in seen)
    assert all(torch.equal(a, b) for a, b in zip(outputs[::2], outputs[1::2], strict=True))


def test_print_and_loggers_are_silent_in_pass_two(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(PlainSAM):
        sam = SAM(0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.print("step")
            if self.logger is not None:
                self.logger.log_metrics({"direct": 1.0})
            for logger in self.loggers:
                logger.log_metrics({"each": 1.0})
            self.loggers[1].log_metrics({"second": 1.0})
            self.trainer.logger.log_metrics({"trainer": 1.0})
            return super().training_step(batch, batch_idx)

    logger = RowLogger()
    fit(build(Loud), max_steps=3, logger=[logger, RowLogger()])
    assert capsys.readouterr().out.count("step\n") == 3
    assert [row for _, row in logger.rows] == [{"direct": 1.0}, {"each": 1.0}, {"trainer": 1.0}] * 3


class MomentumEncoder(Everything):
    """As in MoCo: frozen parameters that the training step moves, by ``.data`` and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(3, 3).requires_grad_(False)
        self.averages = [torch.zeros_like(param) for param in self.parameters() if param.requires_grad]
        self.alias = [param.data for param in self.parameters()]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out = super().training_step(batch, batch_idx)
        for target, source in zip(self.target.parameters(), self.layers[6].parameters(), strict=True):
            target.data.mul_(0.9).add_(source.data.mean(), alpha=0.1)
        torch._foreach_mul_(self.averages, 0.5)
        torch._foreach_add_(self.averages, [param.detach() for param in self.parameters() if param.requires_grad])
        out["loss"] = out["loss"] + self.target.weight.mean() * self.layers[6].bias.mean()
        return out


def test_parameters_that_a_forward_moves_are_moved_once(tmp_path: Path) -> None:
    plain = observed_fit(build(MomentumEncoder), tmp_path)
    forced = with_sam(build(MomentumEncoder), FORCED)
    assert differences(plain, observed_fit(forced, tmp_path)) == []
    moved: list[bool] = []

    class Watch(Callback):
        def on_two_pass_gradients(self, trainer: Any, module: Any, gradients: TwoGradients) -> None:
            pairs = zip(gradients.grads, gradients.perturbed_grads, strict=True)
            moved.append(any(not torch.equal(g, s) for g, s in pairs))

    # An attribute that is an alias of the weights does not bring them back to w in pass two.
    fit(with_sam(build(MomentumEncoder), SAM(0.3)), callbacks=[Watch()], max_steps=2)
    assert moved == [True, True]


def test_parameters_that_are_unfrozen_later_are_perturbed_then() -> None:
    class Unfreezes(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.layers[0].requires_grad_(False)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.layers[2].parameters(), lr=0.1)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.layers[0].requires_grad_(True)
                self.optimizers().add_param_group({"params": list(self.layers[0].parameters())})

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.sam_pass == 1:
                before[:] = weights(self)
            else:
                moved.append([not torch.equal(a, b) for a, b in zip(self.parameters(), before, strict=True)])
            return super().training_step(batch, batch_idx)

    before: list[Tensor] = []
    moved: list[list[bool]] = []
    fit(with_sam(build(Unfreezes), SAM(0.3)))
    assert moved == [[False, False, True, True]] * 6 + [[True] * 4] * 6


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(("rule", "kept"), [(SAM(0.3), False), (ASAM(0.3), False), (SAME(1, rho=0.3), True)], ids=repr)
def test_base_gradients_that_nobody_needs_are_freed_for_pass_two(rule: Rule, kept: bool, manual: bool) -> None:
    class Manual(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.two_pass_step(lambda: Plain.training_step(self, batch, 0), self.optimizers())

    module = with_sam(build(Manual if manual else Plain), rule)
    module.automatic_optimization = not manual
    alive = track_gradients(module)
    fit(module, max_steps=2)
    assert alive == [kept] * 2


def track_gradients(module: Any) -> list[bool]:
    """For each pass two, whether a gradient of pass one is still alive when its forward begins."""
    grads: list[Any] = []
    alive: list[bool] = []

    def keep(param: Tensor) -> None:
        if module.sam_pass == 1:
            grads.append(weakref.ref(param.grad))

    def look(*_: Any) -> None:
        if module.sam_pass == 2:
            alive.append(any(each() is not None for each in grads))
            grads.clear()

    for param in module.parameters():
        param.register_post_accumulate_grad_hook(keep)
    module.layers.register_forward_pre_hook(look)
    return alive


@dataclass
class Sample:
    x: Tensor
    y: Tensor


@pytest.mark.parametrize("kind", ["dataclass", "UserDict", "namespace", "expanded"])
def test_a_batch_of_any_make_that_the_step_changes(kind: str) -> None:
    def collate(items: Any) -> Any:
        x, y = (torch.stack(column) for column in zip(*items, strict=True))
        return {
            "dataclass": lambda: Sample(x, y),
            "UserDict": lambda: UserDict(x=x, y=y),
            "namespace": lambda: SimpleNamespace(x=x, y=y),
            "expanded": lambda: {"x": x, "y": y, "mask": torch.ones(1, 6).expand(8, 6)},
        }[kind]()

    class Changes(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            fields = batch if isinstance(batch, dict | UserDict) else vars(batch)
            seen.append(float(fields["x"].sum()))
            fields["x"].mul_(2)
            y = fields.pop("y")
            return nn.functional.cross_entropy(self(fields["x"] * fields.get("mask", 1)), y)

        def train_dataloader(self) -> Any:
            return DataLoader(super().train_dataloader().dataset, 8, collate_fn=collate)

    seen: list[float] = []
    fit(with_sam(build(Changes), SAM(0.3)), max_epochs=1)
    assert len(seen) == 12
    assert seen[::2] == seen[1::2]
    seen.clear()
    fit(build(Changes), max_epochs=1, callbacks=[CheckpointFractionMonitor()])
    assert seen[::3] == seen[1::3] == seen[2::3]
