"""Every collective of the package, with processes that differ in all they may. None waits for another forever.

Rank 0 has more batches than rank 1, larger ones, other samples in them, and at times a loss that rank 1 has not.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from support.fits import RowLogger, fit
from support.nets import Plain, build, float64
from support.ranks import Ranks
from support.sharpness import exact
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_same import (
    SAM,
    AdaptiveHessian,
    CheckpointEffectMonitor,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    Hessian,
    ReplayCheck,
    SharpnessMonitor,
    TwoPassOptions,
    average_case_sharpness,
    gradient_curvature,
    hessian_trace,
    spectral_density,
    top_eigenvalue,
    with_sam,
    worst_case_sharpness,
)
from lightning_same.callbacks.probe_batches import ProbeBatches
from lightning_same.curvature.float64 import Float64Error

PATIENCE = 120.0
"""Seconds that a fit of a few steps may take before it counts as hanging."""

SIZES = {0: (5, 3, 6), 1: (2,)}
"""Samples of each rank's batches."""


def batches_of(rank: int, sizes: Any = None) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        [torch.randn(size, 6, generator=generator, dtype=torch.float64), torch.randint(3, (size,), generator=generator)]
        for size in (SIZES[rank] if sizes is None else sizes)
    ]


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


class Uneven(Plain):
    """As many steps on each rank, as DDP itself demands, on batches of other sizes."""

    def losses(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1], reduction="none")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch).mean(), sync_dist=False)

    def train_dataloader(self) -> Any:
        return DataLoader(batches_of(rank(), (6, 4, 5) if rank() == 0 else (3, 2, 1)), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(batches_of(rank()), batch_size=None)


class NoLossOnRank1(Uneven):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if rank() == 1 and len(batch[0]) == 2 else super().training_step(batch, batch_idx)


class OwnParts(Uneven):
    """Parameters that only one rank reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.ModuleList([nn.Linear(6, 3, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra[rank()](x)


class NotFiniteOnRank0(Uneven):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("nan") if rank() == 0 and batch_idx == 1 else 1.0)


def rows_of(kind: Any, *monitors: Any, **options: Any) -> dict[str, float]:
    """Everything that the fit has logged, the last value of each key."""
    logger = RowLogger()
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=kind is OwnParts)
    with float64(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = build(kind)
        rule = options.pop("rule", None)
        module.two_pass = TwoPassOptions(**options.pop("two_pass", {"check_replay": False}))
        made = fit(
            module if rule is None else with_sam(module, rule),
            callbacks=list(monitors),
            logger=logger,
            devices=2,
            strategy=strategy,
            max_epochs=1,
            num_sanity_val_steps=-1,
            **options,
        )
    return {key: value.item() for key, value in made.callback_metrics.items() if key != "val_loss"}


def class_zero_of_rank_0(batch: Any) -> Tensor:
    return (batch[1] == 0) & (rank() == 0)


def sharpness_on_lists(empty: bool) -> dict[str, float]:
    own = [] if empty and rank() == 1 else batches_of(rank())
    return rows_of(Uneven, SharpnessMonitor(probe_batches=own, both_ends=True, max_products=103, tolerance=1e-9))


def sharpness_without_a_loss() -> dict[str, float]:
    return rows_of(NoLossOnRank1, SharpnessMonitor(probe_batches=batches_of(rank())), limit_train_batches=1)


def sharpness_with_everything() -> dict[str, float]:
    monitor = SharpnessMonitor(
        probe_batches=batches_of(rank()),
        mode="train",
        confident=True,
        adaptive=True,
        worst_case=0.1,
        average_case=0.1,
        gradient_curvature=True,
        track=True,
        every_n_steps=1,
    )
    return rows_of(Uneven, monitor, rule=SAM(0.1))


def sharpness_by_number() -> dict[str, float]:
    return rows_of(Uneven, SharpnessMonitor(probe_batches=2, every_n_epochs=1))


def effects() -> dict[str, float]:
    return rows_of(Uneven, CheckpointEffectMonitor(noisy_mask=class_zero_of_rank_0, validation_batches=3))


def effects_with_validation_on_one_rank() -> dict[str, float]:
    own = 3 if rank() == 0 else 0
    return rows_of(Uneven, CheckpointEffectMonitor(noisy_mask=class_zero_of_rank_0, validation_batches=own))


def probes() -> dict[str, float]:
    options: Any = {"noisy_mask": class_zero_of_rank_0, "per_layer": True, "per_group": True}
    return rows_of(Uneven, CheckpointFractionMonitor(histogram=True, **options), GradientNormMonitor(**options))


def probes_of_own_parts() -> dict[str, float]:
    return rows_of(OwnParts, CheckpointFractionMonitor(), GradientNormMonitor())


def replay_check() -> dict[str, float]:
    return rows_of(Uneven, ReplayCheck(every_n_steps=1))


def two_pass(**options: Any) -> Callable[[], dict[str, float]]:
    return lambda: rows_of(Uneven, GradientNormMonitor(noisy_mask=class_zero_of_rank_0), rule=SAM(0.1), **options)


def two_passes_global() -> dict[str, float]:
    return two_pass(two_pass={"check_replay": True})()


def two_passes_local() -> dict[str, float]:
    return two_pass(two_pass={"ascent": "local", "check_replay": True})()


def two_passes_by_window() -> dict[str, float]:
    return two_pass(accumulate_grad_batches=2)()


def two_passes_by_micro_batch() -> dict[str, float]:
    return two_pass(accumulate_grad_batches=2, two_pass={"accumulate": "micro_batch", "check_replay": False})()


def two_passes_of_own_parts() -> dict[str, float]:
    return rows_of(OwnParts, rule=SAM(0.1), two_pass={"ascent": "local", "check_replay": False})


def two_passes_not_finite() -> dict[str, float]:
    return rows_of(NotFiniteOnRank0, rule=SAM(0.1), two_pass={"nonfinite": "skip", "check_replay": False})


@pytest.mark.parametrize(
    ("function", "logs"),
    [
        (sharpness_without_a_loss, False),
        (sharpness_with_everything, True),
        (sharpness_by_number, True),
        (effects, True),
        (effects_with_validation_on_one_rank, True),
        (probes, True),
        (probes_of_own_parts, True),
        (replay_check, False),
        (two_passes_global, True),
        (two_passes_local, True),
        (two_passes_by_window, True),
        (two_passes_by_micro_batch, True),
        (two_passes_of_own_parts, False),
        (two_passes_not_finite, True),
    ],
)
def test_no_process_waits_forever(
    ranks: dict[int, Ranks], function: Callable[[], dict[str, float]], logs: bool
) -> None:
    first, second = ranks[2].run(function, patience=PATIENCE)
    assert first == pytest.approx(second, rel=1e-12, nan_ok=True)
    assert bool(first) is logs


@pytest.mark.parametrize("empty", [False, True])
def test_each_rank_gives_as_many_batches_as_it_has(ranks: dict[int, Ranks], empty: bool) -> None:
    """The curvature is that of all samples of all processes."""
    first, second = ranks[2].run(sharpness_on_lists, empty, patience=PATIENCE)
    assert first == pytest.approx(second, rel=1e-12)
    batches = batches_of(0) + ([] if empty else batches_of(1))
    with float64():
        eigenvalues = exact(build(Plain), [torch.cat(parts) for parts in zip(*batches, strict=True)])
    assert first["sharpness/top_eigenvalue"] == pytest.approx(eigenvalues[-1].item(), rel=1e-6)
    assert first["sharpness/bottom_eigenvalue"] == pytest.approx(eigenvalues[0].item(), rel=1e-4)


def different_numbers() -> str:
    with pytest.raises(ValueError, match="a number of `probe_batches` must be the same on all processes") as caught:
        rows_of(Uneven, SharpnessMonitor(probe_batches=1 + rank()))
    return str(caught.value)


def test_different_numbers_are_refused_on_all_processes(ranks: dict[int, Ranks]) -> None:
    first, second = ranks[2].run(different_numbers, patience=PATIENCE)
    assert first == second


class AsksForBatches(Callback):
    """Asks as SharpnessMonitor does, for a module that DDP takes on GPUs only."""

    def __init__(self, own: Any, mode: Any) -> None:
        self.own, self.mode, self.said = own, mode, ""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        module = build(Plain)
        module.norm = nn.SyncBatchNorm(3)
        try:
            ProbeBatches(self, self.own).begin(trainer, module, self.mode)
        except RuntimeError as error:
            self.said = str(error)


def asked(equal: bool, mode: str) -> str:
    asks = AsksForBatches(batches_of(rank(), (4,)) if equal else batches_of(rank()), mode)
    rows_of(Uneven, asks)
    return asks.said


@pytest.mark.parametrize(
    ("equal", "mode", "refused"), [(False, "train", True), (True, "train", False), (False, "eval", False)]
)
def test_layers_that_wait_for_all_processes_want_equal_numbers(
    ranks: dict[int, Ranks], equal: bool, mode: str, refused: bool
) -> None:
    for said in ranks[2].run(asked, equal, mode, patience=PATIENCE):
        assert ("the SyncBatchNorm layers of Plain wait for all of them at every batch" in said) is refused
        assert bool(said) is refused


def summed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor


def hessian(single: bool = False, **options: Any) -> Hessian:
    with float64():
        net = build(Plain)
    own = batches_of(rank())
    if single:
        net, own = net.float(), [[x.float(), y] for x, y in own]
    return Hessian(lambda batch: cross_entropy(net(batch[0]), batch[1]), net, own, reduce=summed, **options)


def functions(dtype: str | None) -> list[float]:
    of = hessian(single=dtype is not None, dtype=dtype)
    return [
        top_eigenvalue(of, both_ends=True).value,
        top_eigenvalue(AdaptiveHessian(of), confident=True).value,
        hessian_trace(of, probes=8).value,
        spectral_density(of, probes=2, steps=5).nodes.sum().item(),
        gradient_curvature(of).value,
        worst_case_sharpness(of, steps=3).value,
        average_case_sharpness(of, probes=8).value,
        float(of.samples),
    ]


@pytest.mark.parametrize("dtype", [None, "float64", "auto"])
def test_the_functions_on_unequal_ranks(ranks: dict[int, Ranks], dtype: str | None) -> None:
    first, second = ranks[2].run(functions, dtype, patience=PATIENCE)
    assert first == pytest.approx(second, rel=1e-12)
    assert first[-1] == 16


class Own(torch.autograd.Function):
    """Gets the parameter itself, for which float64 has no copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1


def float64_on_one_rank(auto: bool) -> list[str]:
    net = build(Plain)
    weight = net.layers[0].weight

    def loss(batch: Any) -> Tensor:
        x = batch[0].float()
        added = Own.apply(weight).sum() * 0 if rank() == 0 else 0.0
        return cross_entropy(net(x), batch[1]) + added

    of = Hessian(loss, net, batches_of(rank()), reduce=summed, dtype="auto" if auto else "float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if auto:
            return [str(top_eigenvalue(of, tolerance=1e-9).converged), str(gradient_curvature(of).rounding)]
        told = []
        for function in (of.gradient, of.loss_and_gradient, lambda: top_eigenvalue(of)):
            with pytest.raises(Float64Error) as caught:
                function()
            told.append("another process" if "on another process" in str(caught.value) else "here")
        return told


def test_what_float64_lacks_on_one_process_is_an_error_on_all(ranks: dict[int, Ranks]) -> None:
    first, second = ranks[2].run(float64_on_one_rank, False, patience=PATIENCE)
    assert (first, second) == (["here"] * 3, ["another process"] * 3)
    first, second = ranks[2].run(float64_on_one_rank, True, patience=PATIENCE)
    assert first == second == ["False", "nan"]
