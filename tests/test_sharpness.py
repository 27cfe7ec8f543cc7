"""SharpnessMonitor: what it measures, when, and that it disturbs nothing."""

import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from nets import Everything, Plain, RowLogger, TwoOptimizers, build, differences, fit, float64, observed_fit, trainer
from ranks import Ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_same import ASAM, SAM, SAME, FriendlySAM, MomentumSAM, SharpnessMonitor, with_sam
from lightning_same.rules.schedules import Linear

KEYS = [
    f"sharpness/{name}"
    for name in (
        "top_eigenvalue",
        "bottom_eigenvalue",
        "residual",
        "bottom_residual",
        "hvps",
        "converged",
        "ascent_gap",
    )
]
TOP, GAP = KEYS[0], KEYS[-1]


def measured(module: Any, monitor: SharpnessMonitor, **options: Any) -> dict[int, dict[str, float]]:
    logger = RowLogger()
    fit(module, callbacks=[monitor], logger=logger, **options)
    rows = [(step, row) for step, row in logger.rows if TOP in row]
    assert all(list(row) == KEYS for _, row in rows)
    found = {step: row for step, row in rows if step is not None}
    assert len(found) == len(rows)
    return found


def exact(module: Any, batch: Sequence[Tensor]) -> Tensor:
    """Eigenvalues of the dense Hessian of the cross-entropy, in ascending order."""
    params = list(module.parameters())
    grads = torch.autograd.grad(nn.functional.cross_entropy(module(batch[0]), batch[1]), params, create_graph=True)
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    rows = torch.autograd.grad(flat, params, torch.eye(len(flat)), is_grads_batched=True)
    return torch.linalg.eigvalsh(torch.cat([row.reshape(len(flat), -1) for row in rows], 1))


def rise(module: Any, batch: Sequence[Tensor], rho: float) -> float:
    """L(w + rho g / |g|) - L(w), at weights that are changed."""

    def loss() -> Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    before, params = loss(), list(module.parameters())
    grads = torch.autograd.grad(before, params)
    length = sum(grad.square().sum() for grad in grads).sqrt()
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param.add_(grad, alpha=rho / length.item())
        return (loss() - before).item()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_the_values_are_those_of_the_first_batches_at_the_weights_of_the_step(count: int, accumulate: int) -> None:
    """Against the dense Hessian, in a training loop written out."""
    module = build(Plain)
    optimizer = module.configure_optimizers()
    batches = list(module.train_dataloader())
    probe = [torch.cat(parts) for parts in zip(*batches[:count], strict=True)]
    expected = []
    for epoch in range(2):
        for index in range(0, len(batches), accumulate):
            twin = build(Plain)
            twin.load_state_dict(module.state_dict())
            eigenvalues = exact(module, probe)
            expected.append((eigenvalues[-1].item(), eigenvalues[0].item(), rise(twin, probe, 0.2)))
            optimizer.zero_grad()
            for batch in batches[index : index + accumulate]:
                (module.training_step(batch, 0) / accumulate).backward()
            optimizer.step()
        assert epoch < 2
    monitor = SharpnessMonitor(every_n_steps=1, probe_batches=count, rho=0.2, both_ends=True, max_products=103)
    rows = measured(build(Plain), monitor, accumulate_grad_batches=accumulate)
    first = (count - 1) // accumulate  # with more than one, the first measurement waits for them
    assert list(rows) == list(range(first, 12 // accumulate))
    for step, row in rows.items():
        top, bottom, gap = expected[step]
        assert row[TOP] == pytest.approx(top, rel=1e-3)
        assert row["sharpness/bottom_eigenvalue"] == pytest.approx(bottom, rel=1e-2, abs=1e-5)
        assert row[GAP] == pytest.approx(gap, rel=1e-3, abs=1e-6)
        assert row["sharpness/converged"] == 1
        assert row["sharpness/residual"] <= 2e-3 * row[TOP] + 1e-6
        assert row["sharpness/hvps"] >= 4


def test_the_gap_is_that_of_the_rule() -> None:
    def gap(rule: Any, **options: Any) -> float:
        return measured(with_sam(build(Plain), rule), SharpnessMonitor(**options), max_steps=1)[0][GAP]

    batch = next(iter(build(Plain).train_dataloader()))
    for rho in (0.1, 0.4):
        assert gap(SAM(rho)) == gap(SAME(1, 3.0, rho)) == pytest.approx(rise(build(Plain), batch, rho), rel=1e-4)
    # e that depends on more than g has no place in a probe, which must not feed a moving average: SAM's at that radius.
    assert gap(FriendlySAM(0.4)) == gap(MomentumSAM(0.4)) == gap(SAM(0.4))
    assert gap(SAM(Linear(0.4, 0.0))) == gap(SAM(0.4))
    assert gap(SAM(0.1), rho=0.4) == gap(SAM(0.4))

    def by_hand(rule: Any) -> float:
        module = build(Plain)
        params = list(module.parameters())
        loss = module.training_step(batch, 0)
        with rule.perturbed(params, torch.autograd.grad(loss, params)):
            return (module.training_step(batch, 0) - loss).item()

    assert gap(ASAM(0.4)) == pytest.approx(by_hand(ASAM(0.4)), rel=1e-4)
    assert gap(ASAM(0.4)) != pytest.approx(gap(SAM(0.4)), rel=1e-2)


def test_a_group_with_radius_0_is_not_perturbed() -> None:
    class Grouped(Plain):
        def configure_optimizers(self) -> Any:
            first, last = self.layers[0].parameters(), self.layers[2].parameters()
            return torch.optim.SGD([{"params": first, "rho": 0.0}, {"params": last}], lr=0.1)

    found = measured(with_sam(build(Grouped), SAM(0.4)), SharpnessMonitor(), max_steps=1)[0][GAP]
    module = build(Plain)
    batch = next(iter(module.train_dataloader()))
    module.layers[0].requires_grad_(False)
    params = list(module.layers[2].parameters())
    loss = module.training_step(batch, 0)
    with SAM(0.4).perturbed(params, torch.autograd.grad(loss, params)):
        assert found == pytest.approx((module.training_step(batch, 0) - loss).item(), rel=1e-4)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_mode_is_the_modules_or_eval(mode: Any) -> None:
    class Normed(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.layers.insert(1, nn.BatchNorm1d(10))

    module = build(Normed)
    module.train(mode == "train")
    batch = next(iter(module.train_dataloader()))
    expected = exact(module, batch)[-1].item()
    found = measured(build(Normed), SharpnessMonitor(mode=mode), max_steps=1)
    assert found[0][TOP] == pytest.approx(expected, rel=1e-3)


def test_every_forward_sees_the_same_state() -> None:
    class Drifts(Plain):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.calls += 1
            return self.calls * super().training_step(batch, batch_idx)

    batches = list(build(Plain).train_dataloader())[:2]
    monitor = SharpnessMonitor(probe_batches=batches, rho=0.2)
    assert measured(build(Drifts), monitor, max_steps=1) == measured(build(Plain), monitor, max_steps=1)


def test_a_training_step_may_write_to_its_batch() -> None:
    class Doubles(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([2 * batch[0], batch[1]], batch_idx)

    class DoublesInPlace(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batch[0].mul_(2)
            return super().training_step(batch, batch_idx)

    for count in (1, 2):
        rows = [
            measured(build(kind), SharpnessMonitor(every_n_steps=1, probe_batches=count), max_epochs=1)
            for kind in (Doubles, DoublesInPlace)
        ]
        assert rows[0] == rows[1]


def without_own(seen: dict[str, Any]) -> dict[str, Any]:
    seen["rows"] = [(step, row) for step, row in seen["rows"] if TOP not in row]
    seen["metrics"] = {k: v for k, v in seen["metrics"].items() if k not in KEYS}
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

    class Kept(SharpnessMonitor):
        def _log(self, made: Any, top: Any, *args: Any) -> None:
            products.append(top.hvps)
            super()._log(made, top, *args)

    strategy = ddp() if torch.distributed.is_initialized() else {}
    with float64(), mock.patch("torch.distributed.all_reduce", counted):
        made = fit(build(Plain), callbacks=[Kept(every_n_steps=4, **options)], **strategy)
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
    # One all-reduce for each product and one for the gradient; DDP's own go elsewhere.
    assert first[2] == -first[1]


def test_mixed_precision_is_measured_in_full() -> None:
    full = measured(build(Plain), SharpnessMonitor(), max_steps=1)
    for precision in ("bf16-mixed", "16-scaled"):
        assert measured(build(Plain), SharpnessMonitor(), max_steps=1, precision=precision) == full


def test_when_it_measures() -> None:
    assert list(measured(build(Plain), SharpnessMonitor(every_n_steps=5))) == [0, 5, 10]
    assert list(measured(build(Plain), SharpnessMonitor(every_n_steps=5, probe_batches=4))) == [3, 5, 10]
    assert list(measured(build(Plain), SharpnessMonitor(every_n_epochs=2), max_epochs=5)) == [11, 23]
    assert list(measured(build(Plain), SharpnessMonitor())) == [0]


def test_the_batches_may_be_given() -> None:
    batches = list(build(Plain).train_dataloader())
    expected = exact(build(Plain), [torch.cat(parts) for parts in zip(*batches, strict=True)])[-1].item()
    monitor = SharpnessMonitor(probe_batches=batches)
    assert measured(build(Plain), monitor)[0][TOP] == pytest.approx(expected, rel=1e-3)


def test_samples_fn_weighs_the_batches() -> None:
    batches = list(build(Plain).train_dataloader())[:2]
    monitor = SharpnessMonitor(probe_batches=batches, samples_fn=lambda batch: int(batch is not batches[0]))
    with mock.patch("lightning.pytorch.strategies.Strategy.batch_to_device", lambda self, batch, **_: batch):
        found = measured(build(Plain), monitor)[0][TOP]
    assert found == pytest.approx(exact(build(Plain), batches[1])[-1].item(), rel=1e-3)


def test_tracking_agrees_and_takes_fewer_products() -> None:
    cold, warm = (
        measured(build(Plain, lr=1e-4), SharpnessMonitor(every_n_steps=1, tolerance=1e-4, track=track), max_epochs=4)
        for track in (False, True)
    )
    for step, row in cold.items():
        assert warm[step][TOP] == pytest.approx(row[TOP], rel=1e-4)
    saved = [row["sharpness/hvps"] - warm[step]["sharpness/hvps"] for step, row in cold.items()]
    assert sum(saved) >= len(saved) / 2


def test_to_move_given_batches_disturbs_nothing() -> None:
    class Augments(Plain):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + torch.randn(batch[0].shape), batch[1]]

    plain, watched = build(Augments), build(Augments)
    fit(plain)
    measured(watched, SharpnessMonitor(probe_batches=list(build(Plain).train_dataloader())))
    assert differences(dict(plain.state_dict()), dict(watched.state_dict())) == []


def test_what_has_not_converged_says_so() -> None:
    with pytest.warns(UserWarning, match=r"has not converged.*sharpness/converged = 0.*`max_products` is 2"):
        rows = measured(build(Plain), SharpnessMonitor(max_products=2), max_steps=1)
    assert rows[0]["sharpness/converged"] == 0

    class Bad(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * math.inf

    with pytest.warns(UserWarning, match="not finite"):
        rows = measured(build(Bad), SharpnessMonitor(), max_steps=1)
    assert math.isnan(rows[0][TOP])
    assert rows[0]["sharpness/converged"] == 0


def test_a_resumed_training_measures_at_the_same_steps(tmp_path: Path) -> None:
    batches = list(build(Plain).train_dataloader())[:2]

    def monitor() -> SharpnessMonitor:
        return SharpnessMonitor(every_n_steps=5, probe_batches=batches)

    whole = measured(build(Plain), monitor(), max_epochs=4)
    keep = ModelCheckpoint(tmp_path, save_last=True)
    made = trainer(callbacks=[monitor(), keep], max_epochs=2, enable_checkpointing=True)
    made.fit(build(Plain))
    logger = RowLogger()
    made = trainer(callbacks=[monitor()], max_epochs=4, logger=logger)
    made.fit(build(Plain), ckpt_path=tmp_path / "last.ckpt")
    resumed = {step: row for step, row in logger.rows if TOP in row}
    assert resumed == {step: row for step, row in whole.items() if step >= 12}
    assert list(resumed) == [15, 20]


def test_an_instance_may_serve_two_fits() -> None:
    monitor = SharpnessMonitor(every_n_steps=5)
    assert measured(build(Plain), monitor) == measured(build(Plain), monitor)


def test_other_callbacks_can_monitor_it(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor=TOP, every_n_train_steps=2)
    stop = EarlyStopping(GAP, patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    monitor = SharpnessMonitor(every_n_epochs=1)
    made = fit(build(Plain), callbacks=[monitor, stop], max_epochs=5)
    assert made.current_epoch == 2
    monitor = SharpnessMonitor(every_n_steps=2, prog_bar=True)
    made = fit(build(Plain), callbacks=[monitor, keep], enable_checkpointing=True)
    assert keep.best_model_score is not None
    assert made.progress_bar_metrics["top_eigenvalue"] == pytest.approx(made.callback_metrics[TOP].item())


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
    with pytest.raises(RuntimeError, match=r"SharpnessMonitor: \w+Strategy shards the parameters"):
        SharpnessMonitor().on_fit_start(made, build(Plain))


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


class Skips(Plain):
    """Has no loss for some batches, as one that skips what is not finite."""

    skipped: Any = ()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if any(torch.equal(batch[0], each) for each in self.skipped):
            return None
        return super().training_step(batch, batch_idx)


def test_a_batch_without_a_loss_is_passed_over() -> None:
    batches = list(build(Plain).train_dataloader())
    module = build(Skips)
    module.skipped = [batches[0][0]]
    with pytest.warns(UserWarning, match="returns None for a probe batch. The next training batch takes its place"):
        rows = measured(module, SharpnessMonitor(every_n_steps=1), max_epochs=1)
    expected = exact(build(Plain), batches[1])[-1].item()
    assert rows[min(rows)][TOP] == pytest.approx(expected, rel=1e-3)
    module = build(Skips)
    module.skipped = [batches[0][0]]
    with pytest.warns(UserWarning, match="returns None for a probe batch. This measurement is left out"):
        assert measured(module, SharpnessMonitor(probe_batches=batches[:2]), max_epochs=1) == {}


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(build(Plain).train_dataloader())[:4])


def test_an_epoch_of_unknown_length_that_is_too_short_is_told_once() -> None:
    class Streamed(Plain):
        def train_dataloader(self) -> Any:
            return DataLoader(Endless(), batch_size=None)

    with pytest.warns(UserWarning, match="`probe_batches` is 9, and the epoch had only 4 batches") as seen:
        assert measured(build(Streamed), SharpnessMonitor(probe_batches=9), max_epochs=2) == {}
    assert sum("nothing is measured yet" in str(each.message) for each in seen) == 1


def test_given_batches_go_the_way_of_the_training_batches() -> None:
    class Tenfold(Plain):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [10 * batch[0], batch[1]]

    given = next(iter(build(Plain).train_dataloader()))
    taken, told = (measured(build(Tenfold), SharpnessMonitor(probe_batches=each)) for each in (1, [given]))
    assert told[0] == taken[0]
    assert told[0][TOP] == pytest.approx(exact(build(Plain), [10 * given[0], given[1]])[-1].item(), rel=1e-3)


def test_an_epoch_must_hold_the_batches() -> None:
    with pytest.raises(ValueError, match="`probe_batches` is 7, but an epoch has only 6"):
        measured(build(Plain), SharpnessMonitor(probe_batches=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be a whole number >= 1, got 0"),
        ({"every_n_steps": 1.5}, "`every_n_steps` must be a whole number >= 1"),
        ({"every_n_epochs": True}, "`every_n_epochs` must be a whole number >= 1"),
        ({"every_n_steps": 1, "every_n_epochs": 1}, "either `every_n_steps` or `every_n_epochs`"),
        ({"max_products": 0}, "`max_products` must be a whole number >= 1"),
        ({"probe_batches": 0}, "`probe_batches` must be a whole number >= 1"),
        ({"probe_batches": []}, "`probe_batches` holds no batch"),
        ({"rho": 0}, "`rho` must be a finite number > 0"),
        ({"tolerance": math.nan}, "`tolerance` must be a finite number > 0"),
        ({"mode": "test"}, '`mode` must be "eval" or "train"'),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharpnessMonitor(**options)
