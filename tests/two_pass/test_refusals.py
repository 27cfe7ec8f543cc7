"""What cannot work is refused before the first step, with the cause and the way out."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from support.fits import fit, go_on, trainer
from support.nets import Plain, TwoOptimizers, build
from torch import Tensor, nn

from lightning_same import SAM, SAMMixin, with_sam
from lightning_same.two_pass.checks import check_module


class Net(SAMMixin, Plain):
    sam = SAM(0.1)
    steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return super().training_step(batch, batch_idx)


class OverriddenBackward(Net):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)


class TwoAutomatic(Net):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.layers[0], self.layers[2])]


class Lbfgs(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class NoOptimizer(Net):
    def configure_optimizers(self) -> Any:
        return None


class NotARule(Net):
    sam = "SAM"


class RuleClass(Net):
    sam = SAM


class BadGroup(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([{"params": list(self.parameters()), "rho": -0.1}], lr=0.1)


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 3, sparse=True)


class Iterator(Net):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


REFUSED: list[tuple[type[pl.LightningModule], type[Exception], str]] = [
    (OverriddenBackward, RuntimeError, r"OverriddenBackward overrides `backward` in front of SAMMixin.*List the mixin"),
    (TwoAutomatic, RuntimeError, r"multiple optimizers.*automatic_optimization"),
    (Lbfgs, RuntimeError, r"LBFGS evaluates the loss several times.*such as SGD or AdamW"),
    (Frozen, ValueError, r"none of the 4 parameters of SGD requires a gradient.*Unfreeze"),
    (NoOptimizer, RuntimeError, r"NoOptimizer.configure_optimizers returns no optimizer.*SAM\(rho=0.1\).*Return one"),
    (NotARule, TypeError, r"NotARule.sam must be a rule such as SAM\(rho=0.05\), or None; got 'SAM'"),
    (RuleClass, TypeError, r"RuleClass.sam must be a rule such as SAM\(\), or None"),
    (BadGroup, ValueError, r"`rho` of parameter group 0 must be a finite number >= 0 and <= 1.8e\+19, got -0.1"),
    (Sparse, RuntimeError, r"sparse gradients cannot be split.*sparse=False"),
    (Iterator, RuntimeError, r"takes `dataloader_iter`.*Take `batch` instead"),
]


@pytest.mark.parametrize(("kind", "error", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_refused_before_the_first_step(kind: Any, error: type[Exception], message: str) -> None:
    module = build(kind)
    for _ in range(2):  # The first refusal leaves nothing behind that would let the second fit begin.
        with pytest.raises(error, match=f"(?s){message}"):
            fit(module)
        assert module.steps == module.sam_pass == 0


@pytest.mark.parametrize("kind", [OverriddenBackward, NoOptimizer, Sparse], ids=lambda kind: kind.__name__)
def test_without_a_rule_nothing_is_refused(kind: Any) -> None:
    module = build(kind)
    module.sam = None
    fit(module, max_steps=2)
    assert module.steps == (0 if kind is NoOptimizer else 2) or kind is NoOptimizer


def test_a_backward_set_on_the_instance_is_refused() -> None:
    module = build(Net)
    module.backward = lambda loss: loss.backward()
    with pytest.raises(RuntimeError, match="the instance of Net overrides `backward`"):
        fit(module)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (DeepSpeedStrategy, r"DeepSpeed never calls the module's `backward`.*strategy=\"ddp\""),
        (FSDPStrategy, r"FSDPStrategy flattens the parameters.*Use ModelParallelStrategy"),
    ],
)
def test_strategies_that_cannot_work_are_refused(strategy: Any, message: str) -> None:
    """Their own set-up needs devices that a test machine lacks, so that only the check itself is run."""
    made = trainer()
    made.strategy.__class__ = type(strategy.__name__, (strategy,), {})
    with pytest.raises(RuntimeError, match=message):
        check_module(build(Net), made)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda loss: loss.expand(8), ValueError, r"Bad.training_step must return a scalar loss, got shape \(8,\)"),
        (lambda loss: loss.detach().expand(3, 2), ValueError, r"got shape \(3, 2\); reduce it by `.mean\(\)`"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss: Any, error: type[Exception], message: str) -> None:
    class Bad(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss(super().training_step(batch, batch_idx))

    module = build(Bad)
    before = [param.detach().clone() for param in module.parameters()]
    with pytest.raises(error, match=message):
        fit(module)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [None, 1.5, "loss"])
def test_a_manual_loss_that_is_no_tensor_is_refused(value: Any) -> None:
    class Manual(SAMMixin, TwoOptimizers):
        sam = SAM(0.1)

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.two_pass_step(lambda: value, optimizer)

    with pytest.raises(TypeError, match=r"The `loss_fn` of two_pass_step must return a scalar loss tensor, got"):
        fit(build(Manual))


def test_a_loss_that_is_none_in_pass_two_only_is_an_error_at_w() -> None:
    class Fickle(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if self.sam_pass == 2 else super().training_step(batch, batch_idx)

    module = build(Fickle)
    before = [param.detach().clone() for param in module.parameters()]
    with pytest.raises(TypeError, match=r"Pass two of Fickle.training_step must return a scalar loss tensor, got None"):
        fit(module)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def test_two_pass_step_belongs_to_manual_optimization() -> None:
    class Wrong(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.two_pass_step(lambda: Plain.training_step(self, batch, 0), self.optimizers())

    with pytest.raises(RuntimeError, match="two_pass_step belongs to manual optimization"):
        fit(build(Wrong))
    with pytest.raises(RuntimeError, match="two_pass_step belongs to manual optimization"):
        build(Net).two_pass_step(lambda: torch.zeros(()), None)


def test_manual_optimizers_are_checked_too() -> None:
    class Manual(SAMMixin, TwoOptimizers):
        sam = SAM(0.1)

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.two_pass_step(loss_fn, optimizer)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.critic.parameters(), lr=0.1), torch.optim.LBFGS(self.generator.parameters())

    with pytest.raises(RuntimeError, match="LBFGS evaluates the loss"):
        fit(build(Manual))


def test_a_rule_set_during_training_is_checked() -> None:
    class Later(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.sam = 0.05

    with pytest.raises(TypeError, match=r"Plain.sam must be a rule"):
        fit(with_sam(build(Plain), SAM(0.1)), callbacks=[Later()])


def test_a_manual_module_that_does_not_step_by_the_rule_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"TwoOptimizers is in manual optimization .* without `two_pass_step`"):
        fit(with_sam(build(TwoOptimizers), SAM(0.1)))


def test_a_rule_inside_a_plain_module_is_refused() -> None:
    class Outer(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.inner = with_sam(Plain(), SAM(0.1))

    with pytest.raises(RuntimeError, match=r"Outer.inner has the rule SAM\(rho=0.1\), but the steps are those of"):
        fit(build(Outer))


class Segmenter(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.sam = nn.Linear(1, 1)


@pytest.mark.parametrize("rule", [SAM(0.1), None])
def test_a_sam_of_the_users_own_is_refused_and_kept(rule: Any) -> None:
    module = Segmenter()
    with pytest.raises(TypeError, match=r"Segmenter uses the name `sam` for a Linear"):
        with_sam(module, rule)
    assert isinstance(module.sam, nn.Linear)
    with pytest.raises(TypeError, match=r"Segmenter uses the name `sam` for a Linear"):
        fit(with_sam(Segmenter, rule)())


def test_complex_parameters_are_refused() -> None:
    module = build(Net)
    module.wave = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="complex parameters have no sign to split by"):
        fit(module)


def test_a_rule_that_comes_later_is_checked_as_well() -> None:
    class Later(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            pl_module.sam = SAM(0.1)

    module = build(Lbfgs)
    module.sam = None
    with pytest.raises(RuntimeError, match="LBFGS evaluates the loss"):
        fit(module, callbacks=[Later()])


def test_a_resumed_manual_module_is_judged_by_its_own_steps(tmp_path: Any) -> None:
    class Waits(SAMMixin, TwoOptimizers):
        """Steps at every third batch only."""

        sam = SAM(0.1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx % 3 == 2:
                super().training_step(batch, batch_idx)

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.two_pass_step(loss_fn, optimizer)

    made = fit(build(Waits), max_epochs=1)
    made.save_checkpoint(tmp_path / "one.ckpt")
    resumed = trainer(max_epochs=2)
    go_on(resumed, build(Waits), tmp_path / "one.ckpt")
    assert resumed.global_step == 8
