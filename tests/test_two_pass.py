"""The mixin on one process: the two routes, no trace of pass two, exact restore."""

import copy
import pickle
import weakref
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nets import Everything, Plain, TwoOptimizers, build, differences, fit, float64, observed_fit, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import (
    ASAM,
    SAM,
    SAME,
    CheckpointFractionMonitor,
    CheckpointSelect,
    CustomSAME,
    Rule,
    SAMMagnitude,
    SAMMixin,
    with_sam,
)
from lightning_same.gradients.pair import TwoGradients
from lightning_same.rules.progress import Progress
from lightning_same.rules.timing import Every

FORCED = SAME(1, condition=3.0, rho=0.0)
RULES = [SAM(0.3), ASAM(0.5), SAME((1, 4), 2.0, 0.3), CustomSAME(2.0, 0.3), CheckpointSelect((1, 4), 0.3)]


class PlainSAM(SAMMixin, Plain):
    pass


class EverythingSAM(SAMMixin, Everything):
    pass


def weights(module: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in module.parameters()]


def hand_loop(rule: Rule, epochs: int = 2, accumulate: int = 1) -> list[Tensor]:
    """SAM in plain PyTorch on `Plain`, one gradient over ``accumulate`` batches."""
    module = build(Plain)
    params = list(module.parameters())
    optimizer = module.configure_optimizers()
    step = 0
    for epoch in range(epochs):
        batches = list(module.train_dataloader())
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]

            def gradient(window: Any = window) -> Any:
                loss = sum(module.training_step(batch, 0) / accumulate for batch in window)
                return torch.autograd.grad(loss, params)

            step_grads = grads = gradient()
            at = Progress(step, epoch)
            if rule.timing.active(at):
                with rule.perturbed(params, grads):
                    perturbed = gradient()
                step_grads = rule.combine(grads, perturbed, at)
            for param, grad in zip(params, step_grads, strict=True):
                param.grad = grad
            optimizer.step()
            step += 1
    return weights(module)


# --- the arithmetic ---


@pytest.mark.parametrize("accumulate", [1, 3, 4])
@pytest.mark.parametrize("rule", [*RULES, SAM(0.3, timing=Every(3))], ids=repr)
def test_automatic_route_equals_the_plain_loop(rule: Rule, accumulate: int) -> None:
    with float64():
        expected = hand_loop(rule, accumulate=accumulate)
        module = with_sam(build(Plain), rule)
        made = fit(module, accumulate_grad_batches=accumulate)
    assert made.global_step == 2 * -(-6 // accumulate)
    for a, b in zip(weights(module), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [*RULES, None], ids=repr)
def test_manual_route_equals_the_automatic_bit_for_bit(rule: Rule | None) -> None:
    class Manual(PlainSAM):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.two_pass_step(lambda: Plain.training_step(self, batch, batch_idx), self.optimizers())

    automatic, manual = with_sam(build(Plain), rule), build(Manual)
    manual.sam = rule
    made = fit(automatic), fit(manual)
    assert made[0].global_step == made[1].global_step == 12
    assert differences(weights(automatic), weights(manual)) == []


def test_a_loss_scale_does_not_show() -> None:
    """With a scaler the update is that of bare float16 autocast: the scale goes through both gradients and out."""

    class Bare(PlainSAM):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.autocast("cpu", torch.float16, cache_enabled=False):
                return super().training_step(batch, batch_idx)

    scaled, bare = with_sam(build(Plain), SAME(1, 2.0, 0.3)), with_sam(build(Bare), SAME(1, 2.0, 0.3))
    fit(scaled, precision="16-scaled")
    fit(bare)
    for a, b in zip(weights(scaled), weights(bare), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
        assert not torch.equal(a, torch.zeros_like(a))


def test_two_optimizers_equal_the_plain_loop() -> None:
    rules = SAME(1, 2.0, 0.2)

    class Manual(SAMMixin, TwoOptimizers):
        sam = rules

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            loss = self.two_pass_step(loss_fn, optimizer)
            assert loss.ndim == 0
            assert not loss.requires_grad

    class Hand(TwoOptimizers):
        """The same by hand: dropout and BatchNorm replayed, one optimizer's parameters at a time."""

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            plain = optimizer.optimizer
            params = plain.param_groups[0]["params"]
            before = {name: value.clone() for name, value in self.named_buffers()}
            rng = torch.get_rng_state()
            grads = torch.autograd.grad(loss_fn(), params)
            after = {name: value.clone() for name, value in self.named_buffers()}
            end = torch.get_rng_state()
            for name, value in self.named_buffers():
                value.copy_(before[name])
            torch.set_rng_state(rng)
            with rules.perturbed(params, grads):
                perturbed = torch.autograd.grad(loss_fn(), params)
            for name, value in self.named_buffers():
                value.data.copy_(after[name])
            torch.set_rng_state(end)
            for param, grad in zip(params, rules.combine(grads, perturbed), strict=True):
                param.grad = grad
            optimizer.step()

    ours, hand = build(Manual), build(Hand)
    made = fit(ours), fit(hand)
    assert made[0].global_step == made[1].global_step == 24
    assert differences(dict(ours.state_dict()), dict(hand.state_dict())) == []


def test_other_gradients_stay_as_pass_one_makes_them() -> None:
    grads: list[Tensor] = []

    class Manual(SAMMixin, TwoOptimizers):
        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.zero_grad()
            self.two_pass_step(loss_fn, optimizer)
            if optimizer is self.optimizers()[0]:
                grads.extend(param.grad.clone() for param in self.generator.parameters())

    plain, sam = build(Manual), build(Manual)
    plain.sam, sam.sam = None, SAM(0.5)
    fit(plain, max_steps=1)
    fit(sam, max_steps=1)
    half = len(grads) // 2
    assert differences(grads[:half], grads[half:]) == []


def test_parameter_groups_have_radii_of_their_own() -> None:
    class Grouped(PlainSAM):
        sam = SAM(0.3)

        def configure_optimizers(self) -> Any:
            first, second = self.layers[0].parameters(), self.layers[2].parameters()
            groups = [{"params": list(first), "rho": 0.0}, {"params": list(second)}]
            return torch.optim.SGD(groups, lr=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.sam_pass == 2:
                moved.append([not torch.equal(a, b) for a, b in zip(weights(self), before[-1], strict=True)])
                e = torch.cat([(a - b).flatten() for a, b in zip(weights(self), before[-1], strict=True)])
                assert e.norm().item() == pytest.approx(0.3)
            else:
                before.append(weights(self))
            return super().training_step(batch, batch_idx)

    moved: list[list[bool]] = []
    before: list[list[Tensor]] = []
    fit(build(Grouped), max_steps=2)
    assert moved == [[False, False, True, True]] * 2


def test_an_optimizers_own_rho_is_not_a_radius() -> None:
    class Ada(PlainSAM):
        sam = FORCED

        def configure_optimizers(self) -> Any:
            return torch.optim.Adadelta(self.parameters(), rho=0.9)

    module, plain = build(Ada), build(Ada)
    plain.sam = None
    fit(module)
    fit(plain)
    assert differences(weights(module), weights(plain)) == []


def test_rule_may_change_between_steps() -> None:
    class Switch(Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.sam = SAM(0.3) if trainer.current_epoch == 1 else None

    module = with_sam(build(Plain), None)
    passes = count_passes(module)
    fit(module, callbacks=[Switch()])
    assert passes == [0] * 6 + [1, 2] * 6


def count_passes(module: Any) -> list[int]:
    """The pass of each training step, as the module sees it."""
    passes: list[int] = []
    module.layers.register_forward_hook(lambda *_: passes.append(module.sam_pass))
    return passes


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(
    ("rule", "expected"), [(None, [0] * 6), (SAM(), [1, 2] * 6), (SAM(timing=Every(2)), [1, 2, 0] * 3)], ids=repr
)
def test_passes_are_counted(rule: Rule | None, expected: list[int], manual: bool) -> None:
    class Manual(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.two_pass_step(lambda: Plain.training_step(self, batch, batch_idx), self.optimizers())

    module = with_sam(build(Manual if manual else Plain), rule)
    module.automatic_optimization = not manual
    passes = count_passes(module)
    fit(module, max_epochs=1)
    assert passes == expected
    assert module.sam_pass == 0


# --- contract 1: no trace ---


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

    from nets import RowLogger

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


# --- contract 2: exact restore ---


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_in_pass_two_leaves_the_weights_at_w(error: type[BaseException], where: str, tmp_path: Path) -> None:
    class Fails(EverythingSAM):
        sam = SAM(0.3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.sam_pass == 1:
                before.append(weights(self))
            out = super().training_step(batch, batch_idx)
            if self.sam_pass == 2 and batch_idx == 2:
                if where == "forward":
                    raise error("in pass two")
                out["loss"].register_hook(fail)
            return out

    def fail(_: Tensor) -> None:
        raise error("in pass two")

    class Save(Callback):
        def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / "exception.ckpt")

    before: list[list[Tensor]] = []
    module = build(Fails)
    with pytest.raises((error, SystemExit)):
        fit(module, callbacks=[Save()], limit_val_batches=0)
    assert differences(weights(module), before[-1]) == []
    assert module.steps_seen == 3
    saved = torch.load(tmp_path / "exception.ckpt", weights_only=False)["state_dict"]
    assert differences([saved[name] for name, _ in module.named_parameters()], before[-1]) == []
    assert module.sam_pass == 0
    fit(module, max_epochs=0)


def test_validation_sees_the_unperturbed_weights() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.last = weights(pl_module)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if hasattr(self, "last"):
                assert differences(weights(pl_module), self.last) == []

    module = build(EverythingSAM)
    module.sam = SAM(0.5)
    fit(module, callbacks=[Watch()], val_check_interval=2)


# --- a loss of None ---


@pytest.mark.parametrize("rule", [FORCED, SAM(0.3)], ids=repr)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_of_none_skips_as_lightning_does(rule: Rule, accumulate: int) -> None:
    class Skips(Plain):
        skip: frozenset[int] = frozenset({1, 5})

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in self.skip else super().training_step(batch, batch_idx)

    plain, sam = build(Skips), with_sam(build(Skips), rule)
    made = fit(plain, accumulate_grad_batches=accumulate), fit(sam, accumulate_grad_batches=accumulate)
    assert made[0].global_step == made[1].global_step
    assert (differences(weights(plain), weights(sam)) == []) == (rule is FORCED)

    if rule is FORCED:
        return
    # In the window of batches 3, 4 and the skipped 5, pass two still happens, on what the others gathered.
    passes = count_passes(sam)
    fit(sam, accumulate_grad_batches=3, max_epochs=1)
    assert passes == [1, 1, 2, 2, 1, 1, 2, 2]


# --- classes of every shape ---


def test_orders_of_bases_give_the_same_weights() -> None:
    class First(SAMMixin, Plain):
        sam = SAM(0.3)

    class Last(Plain, SAMMixin):
        sam = SAM(0.3)

    class Alone(SAMMixin, pl.LightningModule):
        sam = SAM(0.3)
        forward = Plain.forward
        training_step = Plain.training_step
        configure_optimizers = Plain.configure_optimizers
        train_dataloader = Plain.train_dataloader

        def __init__(self) -> None:
            pl.LightningModule.__init__(self)
            self.layers = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
            self.save_hyperparameters({"lr": 0.1, "samples": 48, "batch_size": 8})

    class Base(SAMMixin):
        sam = SAM(0.3)

    class Inherited(Base, Plain):
        pass

    class Overrides(First):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx)

    class Hooks(First):
        """Overrides hooks without calling super."""

        def on_fit_start(self) -> None: ...
        def on_train_start(self) -> None: ...
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
        def on_before_backward(self, loss: Tensor) -> None: ...
        def on_after_backward(self) -> None: ...
        def on_before_optimizer_step(self, optimizer: Any) -> None: ...
        def configure_callbacks(self) -> list[Callback]:
            return []

        def setup(self, stage: str) -> None: ...
        def teardown(self, stage: str) -> None: ...

    class NoIndex(First):
        def training_step(self, batch: Any) -> Tensor:
            return Plain.training_step(self, batch, 0)

    kinds = [First, Last, Alone, Inherited, Overrides, Hooks, NoIndex]
    modules = [build(kind) for kind in kinds]
    modules += [with_sam(build(Plain), SAM(0.3)), build(with_sam(Plain, SAM(0.3))), with_sam(build(First), SAM(0.3))]
    expected = with_sam(build(Plain), None)
    fit(expected)
    for module in modules:
        fit(module)
        assert differences(weights(module), weights(modules[0])) == [], type(module)
        assert differences(weights(module), weights(expected)) != []


def test_a_backward_behind_the_mixin_is_called_in_both_passes() -> None:
    class Custom(Plain):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            calls.append(float(loss.detach()))
            loss.backward(*args, **kwargs)

    calls: list[float] = []
    module = with_sam(build(Custom), SAM(0.3))
    fit(module, max_steps=3)
    assert len(calls) == 6


def test_two_fits_and_two_trainers() -> None:
    module = with_sam(build(Plain), SAM(0.3))
    made = fit(module)
    made.fit_loop.max_epochs = 3
    made.fit(module)
    fit(module)
    plain = build(Plain)
    made.fit_loop.epoch_progress.reset()
    made.fit(plain)
    assert "training_step" not in vars(made.strategy)
    assert plain.global_step > 0


def test_trained_modules_pickle_and_copy() -> None:
    for module in (build(PlainSAM), with_sam(build(Plain), SAM(0.2)), build(with_sam(Plain, SAM(0.2)))):
        module.sam = SAME(1, rho=0.1)
        fit(module, max_steps=2)
        for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(twin) is type(module)
            assert twin.sam == module.sam
            assert differences(dict(twin.state_dict()), dict(module.state_dict())) == []
            fit(twin, max_steps=1)
    by_class = pickle.loads(pickle.dumps(build(with_sam(Plain, SAM(0.7)))))
    assert by_class.sam == SAM(0.7)


def test_a_module_is_copied_in_the_middle_of_a_fit() -> None:
    class CopyEachStep(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            twin = pickle.loads(pickle.dumps(copy.deepcopy(pl_module)))
            assert twin.sam_pass == 0

    fit(with_sam(build(Plain), SAM(0.2)), callbacks=[CopyEachStep()], max_steps=2)


def test_checkpoint_files_and_hyper_parameters(tmp_path: Path) -> None:
    mixed = with_sam(build(Plain, lr=0.05), SAM(0.2))
    made = fit(mixed, max_steps=2)
    made.save_checkpoint(tmp_path / "mixed.ckpt")
    assert mixed.hparams == {"lr": 0.05, "samples": 48, "batch_size": 8}
    assert type(mixed).__name__ == "Plain"
    kinds: list[Any] = [Plain, PlainSAM, with_sam(Plain, SAM(0.2)), type(mixed)]
    for kind in kinds:
        loaded = kind.load_from_checkpoint(tmp_path / "mixed.ckpt")
        assert type(loaded) is kind
        assert loaded.hparams["lr"] == 0.05
        assert differences(weights(loaded), weights(mixed)) == []
    assert kinds[2].load_from_checkpoint(tmp_path / "mixed.ckpt").sam == SAM(0.2)
    plain = build(Plain)
    assert list(plain.state_dict()) == list(mixed.state_dict())


def test_a_subclass_of_a_mixed_class(tmp_path: Path) -> None:
    made = fit(build(Sub), max_steps=1)
    made.save_checkpoint(tmp_path / "sub.ckpt")
    module = build(Sub)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        Sub.load_from_checkpoint(tmp_path / "sub.ckpt"),
    ):
        assert type(twin) is Sub
        assert twin.extra.weight.shape == (1, 1)
    twice = with_sam(with_sam(Plain, SAM(0.2)), SAME(2))
    assert pickle.loads(pickle.dumps(build(twice))).sam == SAME(2)


class Sub(with_sam(Plain, SAM(0.2))):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = nn.Linear(1, 1)


def test_with_sam_wants_a_lightning_module() -> None:
    with pytest.raises(TypeError, match=r"with_sam needs a `lightning\.pytorch`"):
        with_sam(nn.Linear(1, 1), SAM())  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"Plain.sam must be a rule such as SAM\(\), or None"):
        with_sam(Plain(), SAM)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Plain.sam must be a rule"):
        with_sam(Plain, "SAM")  # type: ignore[call-overload]


def test_magnitude_rule_runs() -> None:
    module = with_sam(build(Plain), SAMMagnitude(0.3))
    assert trainer(max_steps=2).fit(module) is None
