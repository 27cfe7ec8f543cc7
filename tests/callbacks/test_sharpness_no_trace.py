"""SharpnessMonitor disturbs nothing, and refuses what it cannot measure."""

import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from support.fits import RowLogger, differences, fit, observed_fit, trainer
from support.nets import Everything, Plain, TwoOptimizers, build, float64
from support.ranks import Ranks
from support.sharpness import KEYS, TOP, measured
from torch import Tensor

from lightning_same import SAM, GradientNormMonitor, MomentumSAM, SharpnessMonitor, with_sam


def without_own(seen: dict[str, Any]) -> dict[str, Any]:
    seen["rows"] = [(step, row) for step, row in seen["rows"] if not any(key.startswith("sharpness/") for key in row)]
    seen["metrics"] = {k: v for k, v in seen["metrics"].items() if not k.startswith("sharpness/")}
    if seen["checkpoint file"] is not None:
        states = seen["checkpoint file"]["callbacks"]
        seen["checkpoint file"]["callbacks"] = {k: v for k, v in states.items() if "Sharpness" not in k}
    return seen


def observed(rule: Any, monitors: list[Any], folder: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    module = build(Everything) if rule is None else with_sam(build(Everything), rule)
    seen = observed_fit(module, folder, callbacks=monitors, **options)
    return sum(TOP in row for _, row in seen["rows"]), without_own(seen)


TRAIN = {"mode": "train"}


MANY = {"probe_batches": 2, "track": True}


@pytest.mark.parametrize(
    ("rule", "accumulate", "precision", "options"),
    [
        (None, 1, "32-true", TRAIN),
        (None, 1, "32-true", MANY),
        (None, 1, "bf16-mixed", MANY),
        (None, 3, "16-scaled", TRAIN),
        (SAM(0.3), 1, "16-scaled", TRAIN),
        (SAM(0.3), 3, "32-true", MANY),
        (SAM(0.3), 3, "bf16-mixed", TRAIN),
        (MomentumSAM(0.3), 1, "32-true", TRAIN),
    ],
    ids=str,
)
def test_it_disturbs_nothing(tmp_path: Path, rule: Any, accumulate: int, precision: Any, options: Any) -> None:
    fitting: Any = {"accumulate_grad_batches": accumulate, "precision": precision}
    none, plain = observed(rule, [], tmp_path, **fitting)
    monitor = SharpnessMonitor(every_n_steps=2, max_products=5, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has not converged")
        some, watched = observed(rule, [monitor], tmp_path, **fitting)
    assert (none, some) == (0, 12 // accumulate // 2)
    assert differences(plain, watched) == []


def ddp() -> dict[str, Any]:
    return {"devices": torch.distributed.get_world_size(), "strategy": DDPStrategy(process_group_backend="gloo")}


def observe_a_rank(with_monitor: bool) -> tuple[int, dict[str, Any]]:
    monitors = [SharpnessMonitor(every_n_steps=2, probe_batches=2)] if with_monitor else []
    with tempfile.TemporaryDirectory() as folder:
        return observed(None, monitors, Path(folder), save=torch.distributed.get_rank() == 0, **ddp())


def measure_a_rank(**options: Any) -> tuple[dict[str, float], float, int]:
    """The last values, the products of all measurements, and how many all-reduces were as large as the gradient."""
    size, large, products = 103, [], []
    all_reduce = torch.distributed.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        large.append(tensor.numel() == size)
        return all_reduce(tensor, *args, **kwargs)

    class Products(Callback):
        seen: Tensor | None = None

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            found = trainer.callback_metrics.get("sharpness/hvps")
            if found is not self.seen:  # A measurement makes a tensor of its own.
                self.seen = found
                products.append(int(found))

    strategy = ddp() if torch.distributed.is_initialized() else {}
    with float64(), mock.patch("torch.distributed.all_reduce", counted):
        made = fit(build(Plain), callbacks=[SharpnessMonitor(every_n_steps=4, **options), Products()], **strategy)
    return {key: made.callback_metrics[key].item() for key in KEYS}, len(products), sum(products) - sum(large)


def measure_with_one_batch() -> Any:
    return measure_a_rank(probe_batches=1)


def measure_with_three_batches() -> Any:
    return measure_a_rank(probe_batches=3, track=True)


def test_on_two_processes_it_disturbs_nothing(ranks: dict[int, Ranks]) -> None:
    plain, watched = ranks[2].run(observe_a_rank, False), ranks[2].run(observe_a_rank, True)
    assert watched[0][0] > 0
    assert differences([seen for _, seen in plain], [seen for _, seen in watched]) == []


@pytest.mark.parametrize("measure", [measure_with_one_batch, measure_with_three_batches])
def test_two_processes_measure_what_one_does(ranks: dict[int, Ranks], measure: Any) -> None:
    first, second = ranks[2].run(measure)
    assert first[0] == second[0]
    assert first[0] == pytest.approx(measure()[0], rel=1e-8, abs=1e-8)
    # One all-reduce for each product; the gradient goes with the loss, and DDP's own go elsewhere.
    assert first[1] > 0
    assert first[2] == 0


def test_to_move_given_batches_disturbs_nothing() -> None:
    class Augments(Plain):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + torch.randn(batch[0].shape), batch[1]]

    plain, watched = build(Augments), build(Augments)
    fit(plain)
    measured(watched, SharpnessMonitor(probe_batches=list(build(Plain).train_dataloader())))
    assert differences(dict(plain.state_dict()), dict(watched.state_dict())) == []


def test_measuring_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(Plain):
        def training_step(self, batch: Any) -> Any:
            self.print("step")
            for logger in self.loggers:
                logger.log_metrics({"direct": 1.0})
            self.log("loss", 1.0)
            return {"loss": super().training_step(batch, 0)}

    logger = RowLogger()
    fit(build(Loud), max_steps=3, logger=logger, callbacks=[SharpnessMonitor()])
    assert capsys.readouterr().out.count("step\n") == 3
    assert sum("direct" in row for _, row in logger.rows) == 3


def test_manual_optimization_needs_a_loss_fn() -> None:
    with pytest.raises(RuntimeError, match=r"SharpnessMonitor: TwoOptimizers is in manual.*`loss_fn\(module, batch\)`"):
        measured(build(TwoOptimizers), SharpnessMonitor())

    def critic_loss(module: Any, batch: Any) -> Tensor:
        return module.critic_loss(batch[0], torch.randn(len(batch[0]), 2))

    plain, watched = build(TwoOptimizers), build(TwoOptimizers)
    fit(plain)
    assert list(measured(watched, SharpnessMonitor(every_n_steps=4, loss_fn=critic_loss))) == [0, 4, 8]
    assert differences(dict(plain.state_dict()), dict(watched.state_dict())) == []


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_shards_are_refused(strategy: Any) -> None:
    made = trainer()
    made.strategy.__class__ = type(strategy.__name__, (strategy,), {})
    with pytest.raises(RuntimeError, match=r"SharpnessMonitor: \w+Strategy shards the parameters") as refused:
        SharpnessMonitor().on_fit_start(made, build(Plain))
    # ModelParallelStrategy is no way out, as it is for the other monitors.
    assert 'Use strategy="ddp", or leave the callback out.' in str(refused.value)
    if strategy is not ModelParallelStrategy:
        with pytest.raises(RuntimeError, match=r'Use ModelParallelStrategy or strategy="ddp", or leave'):
            GradientNormMonitor().on_fit_start(made, build(Plain))


def test_what_has_no_second_derivative_is_refused_at_the_first_step() -> None:
    class Fused(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))

    module = build(Fused)
    weights = [param.clone() for param in module.parameters()]
    with pytest.raises(RuntimeError, match=r"no second derivative.*once_differentiable.*Replace it"):
        measured(module, SharpnessMonitor())
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    assert all(each.training for each in module.modules())
