"""Training steps that do more than return a loss: pass two and the monitors make no difference to them."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, fit, observed_fit, weights
from support.nets import Plain, TwoOptimizers, build
from support.ranks import Ranks
from support.real_modules import (
    REAL,
    ReadsBack,
    ReadsProgress,
    ReassignsModule,
    ReassignsParameter,
    ScalesGradients,
    StopsByLoss,
    TogglesFreezing,
    UnfreezesAndWrites,
    WritesWeights,
)
from torch import Tensor

from lightning_same import (
    SAM,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    LastFraction,
    SharpnessMonitor,
    replaying,
    with_sam,
)

MONITORS = [CheckpointFractionMonitor, GradientNormMonitor, SharpnessMonitor]


def observed(module: pl.LightningModule, folder: Path, **options: Any) -> dict[str, Any]:
    return observed_fit(module, folder, **options)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", REAL, ids=lambda kind: kind.__name__)
def test_a_second_pass_at_rho_zero_is_plain_training(kind: Any, accumulate: int, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": accumulate}
    plain = observed(build(kind), tmp_path, **options)
    assert differences(plain, observed(with_sam(build(kind), SAM(0.0)), tmp_path, **options)) == []


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("kind", REAL, ids=lambda kind: kind.__name__)
def test_a_monitor_beside_it_changes_nothing(kind: Any, monitor: Any, tmp_path: Path) -> None:
    plain = observed(build(kind), tmp_path)
    watched = observed(build(kind), tmp_path, callbacks=[monitor(every_n_steps=3)])
    for result in (plain, watched):  # What the monitor itself logs and keeps.
        for key in ("rows", "metrics", "checkpoint file"):
            del result[key]
    assert differences(plain, watched) == []


def by_hand(module: Plain, rho: float, epochs: int, window: int) -> list[Tensor]:
    """The weights after SAM in which pass two is taken by a deep copy, made before pass one and moved by e.

    Nothing has to be put back so, whatever the training step changes.
    """
    optimizer = module.configure_optimizers()
    for epoch in range(epochs):
        module.trainer = SimpleNamespace(current_epoch=epoch)
        batches = list(enumerate(module.train_dataloader()))
        for start in range(0, len(batches), window):
            module.zero_grad()
            twin = copy.deepcopy(module)
            twin.trainer = module.trainer
            base = grads_by_hand(module, batches[start : start + window], window)
            norm = torch.cat([grad.flatten() for grad in base.values()]).norm()
            with torch.no_grad():
                for name, param in twin.named_parameters():
                    if name in base:
                        param += rho * base[name] / norm
            step = grads_by_hand(twin, batches[start : start + window], window)
            for name, param in module.named_parameters():
                param.grad = step.get(name)
            module.on_after_backward()
            optimizer.step()
    return [param.detach() for param in module.parameters()]


def grads_by_hand(module: Plain, batches: list[Any], window: int) -> dict[str, Tensor]:
    for index, batch in batches:
        (module.training_step(copy.deepcopy(batch), index) / window).backward()
        if index != batches[-1][0]:
            module.on_after_backward()
    return {name: param.grad for name, param in module.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", [TogglesFreezing, UnfreezesAndWrites, WritesWeights, ScalesGradients])
def test_sam_is_the_loop_by_hand(kind: Any, window: int) -> None:
    """At rho > 0, where what pass two wrongly puts back, or does not put back, changes s."""
    module = with_sam(build(kind).double(), SAM(0.3))
    fit(module, max_epochs=2, accumulate_grad_batches=window)
    for ours, theirs in zip(module.parameters(), by_hand(build(kind).double(), 0.3, 2, window), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("replaces_memory", [False, True])
def test_weights_written_for_the_first_time_in_the_middle_are_told(replaces_memory: bool) -> None:
    class Late(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            weight = self.layers[2].weight
            if batch_idx >= 2 and replaces_memory:
                weight.data = weight.data * 0.9
            elif batch_idx >= 2:
                with torch.no_grad():
                    weight.mul_(0.9)
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="Late.training_step has written to trained weights for the first time"):
        fit(with_sam(build(Late), SAM(0.1)), max_epochs=1)


def test_in_pass_two_each_micro_batch_sees_its_own_place() -> None:
    seen: list[tuple[int, int, int, bool]] = []

    class Watch(ReadsProgress):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loop = self.trainer.fit_loop.epoch_loop
            seen.append((self.sam_pass, loop.batch_idx, loop.total_batch_idx, self.trainer.is_last_batch))
            return super().training_step(batch, batch_idx)

    fit(with_sam(build(Watch), SAM(0.1)), max_epochs=2, accumulate_grad_batches=3)
    passes = {number: [row[1:] for row in seen if row[0] == number] for number in (1, 2)}
    assert passes[1] == passes[2] == [(index % 6, index, index % 6 == 5) for index in range(12)]


def test_a_loss_at_the_perturbed_weights_stops_no_training() -> None:
    plain = build(StopsByLoss)
    made = fit(plain, max_epochs=1)
    assert made.global_step == 6
    module = with_sam(build(StopsByLoss), SAM(1e4))
    assert fit(module, max_steps=1).should_stop is fit(build(StopsByLoss), max_steps=1).should_stop


@pytest.mark.parametrize("watch", [None, *MONITORS])
def test_loggers_keep_their_type_and_places(watch: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Asks(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logger = self.logger
            assert isinstance(logger, CSVLogger)
            seen.append((self.trainer.log_dir, logger.log_dir, logger.save_dir, logger.name, logger.version + 1))
            logger.experiment.log_metrics({"direct": 1.0}, step=batch_idx)
            logger.log_metrics({"asked": 2.0}, step=batch_idx)
            return super().training_step(batch, batch_idx)

    module = build(Asks) if watch else with_sam(build(Asks), SAM(0.1))
    logger = CSVLogger(tmp_path, name="here")
    fit(module, max_epochs=1, logger=logger, callbacks=[watch(every_n_steps=2)] if watch else [])
    assert len(set(seen)) == 1
    assert seen[0][1] == str(tmp_path / "here" / "version_0")
    text = (tmp_path / "here" / "version_0" / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("asked")
    assert sum(line.split(",")[column] == "2.0" for line in text[1:]) == 6


def test_two_optimizers_and_max_steps_reach_the_end_of_a_schedule() -> None:
    """``max_steps`` counts the steps of both."""
    passes: list[int] = []

    class Watch(TwoOptimizers):
        def step(self, loss_fn: Any, optimizer: Any) -> None:
            def counted() -> Tensor:
                passes.append(self.sam_pass)
                return loss_fn()

            self.two_pass_step(counted, optimizer)

    made = fit(with_sam(build(Watch), SAM(0.1, timing=LastFraction(0.5))), max_epochs=10, max_steps=12)
    assert made.global_step == 12
    assert passes == [0] * 6 + [1, 2] * 6


@pytest.mark.parametrize("kind", [ReassignsModule, ReassignsParameter], ids=lambda kind: kind.__name__)
def test_what_is_reassigned_is_made_at_w(kind: Any) -> None:
    """And not at w + e, which rho = 0 cannot tell apart."""
    module = with_sam(build(kind), SAM(0.5))
    start = build(kind).layers[0].weight.detach().clone()
    fit(module, max_steps=1)
    if kind is ReassignsModule:
        torch.testing.assert_close(module.teacher[0].weight, start, rtol=0, atol=0)
    else:
        torch.testing.assert_close(module.average, start * 0.5, rtol=0, atol=0)


def weights_on_a_rank(rule: Any) -> list[Tensor]:
    module = build(ReadsBack) if rule is None else with_sam(build(ReadsBack), rule)
    strategy: Any = DDPStrategy(process_group_backend="gloo")
    fit(module, max_epochs=1, devices=2, strategy=strategy)
    return weights(module)


def test_on_two_processes_a_step_reads_back_what_is_reduced_over_them(ranks: dict[int, Ranks]) -> None:
    plain = ranks[2].run(weights_on_a_rank, None)
    assert differences(plain, ranks[2].run(weights_on_a_rank, SAM(0.0))) == []
    one, two = ranks[2].run(weights_on_a_rank, SAM(0.1))
    assert differences(one, two) == []
    assert differences(one, plain[0]) != []


@pytest.mark.parametrize("monitored", [False, True])
def test_what_is_logged_is_that_of_pass_one(monitored: bool) -> None:
    """At rho > 0, where the loss of the other passes is another; from the first step on, where nothing was logged."""
    losses: list[Tensor] = []

    class Logs(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if not replaying():
                losses.append(loss.detach())
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

    module = build(Logs) if monitored else with_sam(build(Logs), SAM(0.5))
    made = fit(module, max_epochs=1, callbacks=[GradientNormMonitor(every_n_steps=1, rho=0.5)] if monitored else [])
    assert len(losses) == made.global_step
    torch.testing.assert_close(made.callback_metrics["loss_epoch"], torch.stack(losses).mean())
    assert made.callback_metrics["loss_step"] == losses[-1]
