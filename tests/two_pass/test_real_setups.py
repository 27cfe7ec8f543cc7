"""Optimizers, callbacks, batches and classes as published projects have them: they work, or are refused early."""

import abc
from collections import OrderedDict
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from support.fits import RowLogger, differences, fit, trainer, weights
from support.nets import Plain, TwoOptimizers, build, loader
from support.passes import count_passes
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import SAM, Every, Linear, Rule, SharpnessMonitor, Timing, with_sam

T = TypeVar("T")


class ClosureOnce(torch.optim.SGD):
    """Needs a closure and calls it once, as some optimizers that were written for Lightning do."""

    def step(self, closure: Any) -> Any:
        loss = closure()
        super().step()
        return loss


class ClosureTwice(torch.optim.SGD):
    def step(self, closure: Any) -> Any:
        closure()
        self.zero_grad()
        loss = closure()
        super().step()
        return loss


class ByClosure(Plain):
    kind: Any = ClosureOnce

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.1)


class PlainSGD(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_an_optimizer_that_calls_its_closure_once_works() -> None:
    ours, theirs = with_sam(build(ByClosure), SAM(0.1)), with_sam(build(PlainSGD), SAM(0.1))
    passes = count_passes(ours)
    fit(ours)
    fit(theirs)
    assert passes.count(2) == 12
    assert differences(weights(ours), weights(theirs)) == []


def test_one_that_calls_it_twice_is_told() -> None:
    module = with_sam(build(ByClosure), SAM(0.1))
    type(module).kind = ClosureTwice
    with pytest.raises(RuntimeError, match="ClosureTwice evaluates the loss several times per step"):
        fit(module)
    type(module).kind = ClosureOnce


class ByLbfgs(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


def test_without_a_rule_an_optimizer_may_evaluate_the_loss_as_often_as_it_likes() -> None:
    plain, mixed = build(ByLbfgs), with_sam(build(ByLbfgs), None)
    fit(plain, max_epochs=1)
    fit(mixed, max_epochs=1)
    assert differences(weights(plain), weights(mixed)) == []


class Unfreeze(BaseFinetuning):
    """Freezes everything before training and unfreezes the head when the first epoch begins."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.layers)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 0:
            pl_module.layers[2].requires_grad_(True)


class Finetuned(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_finetuning_that_freezes_all_before_training_works() -> None:
    module = with_sam(build(Finetuned), SAM(0.1))
    passes = count_passes(module)
    start = build(Finetuned)
    fit(module, callbacks=[Unfreeze()])
    assert passes.count(2) == 12
    assert torch.equal(module.layers[0].weight, start.layers[0].weight)
    assert not torch.equal(module.layers[2].weight, start.layers[2].weight)


def test_nothing_to_train_is_told_at_the_first_step() -> None:
    module = with_sam(build(Finetuned), SAM(0.1))
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="none of the 4 parameters of SGD requires a gradient"):
        fit(module)


class GenericFirst(Generic[T], pl.LightningModule):
    pass


class AbstractFirst(abc.ABC, pl.LightningModule):
    pass


@pytest.mark.parametrize(("kind", "base"), [(GenericFirst, "Generic"), (AbstractFirst, "ABC")])
def test_a_class_with_another_layout_is_wrapped_as_a_class(kind: Any, base: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"lists {base} before LightningModule. Wrap the class instead: `with_sam"):
        with_sam(kind(), SAM())

    class Full(kind, Plain):  # type: ignore[misc, valid-type]
        pass

    wrapped = with_sam(Full, SAM(0.1))
    made = trainer(max_epochs=1)
    made.fit(wrapped())
    made.save_checkpoint(tmp_path / "one.ckpt")
    loaded = wrapped.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    assert isinstance(loaded, wrapped)
    assert differences(weights(loaded), weights(made.lightning_module)) == []


def test_a_wrapped_module_is_scripted() -> None:
    module = with_sam(build(Plain), SAM(0.1))
    x = torch.randn(3, 6)
    torch.testing.assert_close(module.to_torchscript()(x), module(x))


def test_a_module_of_the_other_distribution_is_told() -> None:
    class LightningModule:
        pass

    LightningModule.__module__ = "pytorch_lightning.core.module"
    theirs = type("Darts", (LightningModule,), {})
    for given in (theirs, theirs()):
        with pytest.raises(TypeError, match="Darts is a LightningModule of the distribution `pytorch_lightning`"):
            with_sam(given, SAM())


def test_a_file_loaded_by_a_class_without_a_rule_is_told(tmp_path: Path) -> None:
    module = with_sam(build(Plain), SAM(0.1))
    fit(module, max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.warns(UserWarning, match="the class has no rule, so the module trains without SAM"):
        loaded = type(module).load_from_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    assert loaded.sam is None
    assert differences(weights(loaded), weights(module)) == []


class Odd:
    """A batch as graph libraries have it: no sequence, no mapping."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, *args: Any, **kwargs: Any) -> "Odd":
        return Odd(self.x.to(*args, **kwargs), self.y.to(*args, **kwargs))


class OddBatches(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch.x), batch.y)

    def train_dataloader(self) -> Any:
        return DataLoader([Odd(x, y) for x, y in loader(48, 8)], batch_size=None)


def test_one_batch_of_any_type_has_a_sharpness() -> None:
    """One batch on one process needs no weight."""
    odd, plain = (
        fit(build(OddBatches), callbacks=[SharpnessMonitor()]),
        fit(build(Plain), callbacks=[SharpnessMonitor()]),
    )
    assert odd.callback_metrics["sharpness/top_eigenvalue"] == plain.callback_metrics["sharpness/top_eigenvalue"]


def test_several_need_their_numbers_of_samples() -> None:
    with pytest.raises(
        ValueError, match=r"SharpnessMonitor: the number of samples in a batch of type Odd.*`samples_fn"
    ):
        fit(build(OddBatches), callbacks=[SharpnessMonitor(probe_batches=2)])
    fit(build(OddBatches), callbacks=[SharpnessMonitor(probe_batches=2, samples_fn=lambda batch: len(batch.x))])


class LooksAtG(Timing):
    """Keeps nothing, and decides by g."""

    def active(self, at: Any) -> bool:
        return True

    def confirmed(self, grads: Any, at: Any, memory: Any) -> bool:
        return bool(grads[0].sum() > 0)


@pytest.mark.parametrize("options", [{"ascent": "local"}, {"accumulate": "micro_batch"}])
def test_a_timing_that_looks_at_g_needs_the_g_of_all(options: Any) -> None:
    module = with_sam(build(Plain), Rule(0.1, timing=LooksAtG()), **options)
    with pytest.raises(ValueError, match=r"by the gradient of the whole step|decides by g whether to take pass two"):
        fit(module)
    fit(with_sam(build(Plain), SAM(0.1, timing=Every(2)), **options), max_epochs=1)


def test_a_manual_module_that_never_mentions_two_pass_step_is_refused_before_its_first_step() -> None:
    module = with_sam(build(TwoOptimizers), SAM(0.1))
    start = weights(build(TwoOptimizers))
    with pytest.raises(RuntimeError, match=r"TwoOptimizers is in manual optimization and.*without `two_pass_step`"):
        fit(module)
    assert differences(weights(module), start) == []


def test_one_that_takes_plain_steps_before_it_calls_two_pass_step_within_a_function_is_not_refused() -> None:
    class Nested(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            critic, generator = self.optimizers()
            z = torch.randn(len(batch[0]), 2)

            def step() -> None:
                self.two_pass_step(lambda: self.generator_loss(z), generator)

            critic.zero_grad()
            self.manual_backward(self.critic_loss(batch[0], z))
            critic.step()
            step()

    module = with_sam(build(Nested), SAM(0.1))
    made = fit(module, max_epochs=1, limit_train_batches=2)
    assert made.global_step == 4


def test_an_optimizer_that_the_trainer_does_not_know_is_told() -> None:
    """And does not end the epoch in silence, as a StopIteration would."""

    class Foreign(TwoOptimizers):
        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.two_pass_step(loss_fn, torch.optim.SGD(self.parameters(), lr=0.1))

    with pytest.raises(ValueError, match=r"Foreign: two_pass_step needs one of `self.optimizers\(\)`, got another SGD"):
        fit(with_sam(build(Foreign), SAM(0.1)))


class Sealed(OrderedDict):  # type: ignore[type-arg]
    """As the outputs of some language models: it can be filled once only."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("sealed")


def test_what_a_model_returns_may_be_kept_on_the_module() -> None:
    class Keeps(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.last = Sealed(loss=loss.detach())
            return loss

    ours, plain = with_sam(build(Keeps), SAM(0.0)), build(Keeps)
    fit(ours)
    fit(plain)
    assert differences(weights(ours), weights(plain)) == []


def test_a_radius_is_logged_once_for_a_step() -> None:
    logger = RowLogger()
    module = with_sam(build(Plain), SAM(Linear(0.2)), nonfinite="skip")
    fit(module, max_epochs=1, accumulate_grad_batches=3, logger=logger)
    assert [step for step, row in logger.rows if "sam/rho" in row] == [0, 1]


def test_a_patch_of_somebody_else_stays() -> None:
    made = trainer(max_epochs=1)
    own = made.strategy.training_step
    made.strategy.training_step = lambda *args: own(*args)
    theirs = made.strategy.training_step
    made.fit(with_sam(build(Plain), SAM(0.1)))
    assert made.strategy.training_step is theirs


class Logs(Plain):
    """Writes to its logger by itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.logger.experiment.add_text("step", str(batch_idx))
        return super().training_step(batch, batch_idx)


def test_a_mock_in_place_of_a_logger_works() -> None:
    """As in the tests that users write; it gets nothing from pass two or a monitor's passes."""
    logger = Mock(version="0")
    logger.name, logger.save_dir = "name", "folder"  # `name` is an argument of the mock itself.
    fit(with_sam(build(Logs), SAM(0.1)), max_epochs=1, logger=logger)
    assert logger.experiment.add_text.call_count == len(build(Logs).train_dataloader())
    fit(build(Logs), max_epochs=1, logger=logger, callbacks=[SharpnessMonitor(every_n_steps=2)])
    assert logger.experiment.add_text.call_count == 2 * len(build(Logs).train_dataloader())
