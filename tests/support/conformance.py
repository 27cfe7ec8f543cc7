"""The conformance matrix: Trainer features under two passes, against plain Lightning and against a loop by hand.

`CASES` is the grid, `FEATURES` what is tried one at a time. `trainer/test_conformance.py` asserts all of it;
`support/conformance_page.py` writes it to docs/conformance.md.
"""

import itertools
import math
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import SAM, with_sam
from support.conformance_rules import RHO, RULES, ByHand, moved, put_back
from support.fits import LIGHTNING, differences, fit, observed_fit
from support.nets import Everything, Plain, build, loader
from support.passes import FORCED

EPOCHS = 3

SINCE = {"WeightAveraging": (2, 6)}
"""Features that the oldest supported Lightning lacks, and the release that brought them."""


class Case(NamedTuple):
    accumulate: int
    precision: str
    clipping: str
    scheduler: str


CASES = [
    Case(*values)
    for values in itertools.product(
        (1, 3),
        ("32-true", "bf16-mixed", "16-mixed, scaled", "16-mixed, overflows"),
        ("none", "norm", "value"),
        ("step", "epoch", "plateau"),
    )
]

OF_OTHER_RULES = [case for case in CASES if (case.clipping, case.scheduler) == ("norm", "step")]
"""Accumulation and precision; what else there is acts on d, whatever made it."""


CLIPPING: dict[str, dict[str, Any]] = {
    "none": {},
    "norm": {"gradient_clip_val": 0.1},
    "value": {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
}


def scaler_of(precision: str) -> torch.amp.GradScaler | None:
    """Backed off from its third overflow in a row, if it begins too high; raised again every fourth step."""
    if not precision.startswith("16"):
        return None
    scale = 2.0**21 if precision.endswith("overflows") else 2.0**10
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)


def options_of(case: Case) -> dict[str, Any]:
    """The Trainer's."""
    options = {**CLIPPING[case.clipping], "accumulate_grad_batches": case.accumulate}
    scaler = scaler_of(case.precision)
    if scaler is None:
        options["precision"] = case.precision
    else:
        # By name, Lightning turns float16 into bfloat16 on a CPU.
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    return {**options, **ddp_options()}


def ddp_options() -> dict[str, Any]:
    if not torch.distributed.is_initialized():
        return {}
    return {
        "devices": torch.distributed.get_world_size(),
        "strategy": DDPStrategy(process_group_backend="gloo"),
    }


def scheduler_of(kind: str, optimizer: torch.optim.Optimizer) -> Any:
    if kind == "step":
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    if kind == "epoch":
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.1)


def scheduled(kind: str, optimizer: torch.optim.Optimizer, monitor: str) -> Any:
    """What `configure_optimizers` returns."""
    config = {
        "scheduler": scheduler_of(kind, optimizer),
        "interval": "step" if kind == "step" else "epoch",
        "monitor": monitor,
    }
    return {"optimizer": optimizer, "lr_scheduler": config}


class EverythingScheduled(Everything):
    """BatchNorm with and without momentum, spectral norm, dropout, metrics, generators, attributes of every kind."""

    def __init__(self, scheduler: str) -> None:
        super().__init__()
        self.scheduler = scheduler

    def train_dataloader(self) -> DataLoader:
        return loader(32, 8, self.dtype)  # 4 batches: the last window of 3 is short

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01 * self.hparams["lr"])
        return scheduled(self.scheduler, optimizer, "val_loss")


class PlainScheduled(Plain):
    """Deterministic, so that a loop by hand can follow it."""

    def __init__(self, scheduler: str) -> None:
        super().__init__(samples=40)  # 5 batches: the last window of 3 is short
        self.scheduler = scheduler

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        return scheduled(self.scheduler, optimizer, "mean_loss")


def observe(module: Any, **options: Any) -> dict[str, Any]:
    """Everything that can be observed, where ranks have buffers and random numbers of their own."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    module.nested["rank"] = rank
    with tempfile.TemporaryDirectory() as folder:
        # The checkpoint file is written by rank zero alone.
        return observed_fit(module, Path(folder), save=rank == 0, **{**ddp_options(), **options})


def against_lightning(case: Case) -> list[str]:
    """Where a forced second pass at rho = 0 differs from plain Lightning; nowhere, if all is well."""
    plain = observe(build(EverythingScheduled, case.scheduler), **options_of(case))
    forced = observe(with_sam(build(EverythingScheduled, case.scheduler), FORCED), **options_of(case))
    return differences(plain, forced)


def against_the_loop(case: Case, rule: str = "SAM") -> float:
    """The largest difference of a weight after training by a rule from that of `loop_by_hand`."""
    module = with_sam(build(PlainScheduled, case.scheduler), RULES[rule][0])
    fit(module, max_epochs=EPOCHS, **options_of(case))
    expected = loop_by_hand(case, RULES[rule][1]())
    return max((a.detach() - b).abs().max().item() for a, b in zip(module.parameters(), expected, strict=True))


def loop_by_hand(case: Case, rule: ByHand) -> list[Tensor]:
    """A rule with every Trainer feature of the case, written out on one process; by nothing of the package."""
    net = build(PlainScheduled, case.scheduler).layers
    params = list(net.parameters())
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3)
    scheduler = scheduler_of(case.scheduler, optimizer)
    scaler = scaler_of(case.precision)
    dtype = {"32": None, "bf": torch.bfloat16, "16": torch.float16}[case.precision[:2]]
    batches = whole_batches()
    step = 0

    def loss_of(batch: Any) -> Tensor:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            return nn.functional.cross_entropy(net(batch[0]), batch[1])

    def backward(window: list[Any]) -> list[Tensor]:
        losses = []
        for batch in window:
            loss = loss_of(batch)
            losses.append(loss.detach())
            loss = loss / case.accumulate
            (loss if scaler is None else scaler.scale(loss)).backward()
        return losses

    for _ in range(EPOCHS):
        losses: list[Tensor] = []
        for start in range(0, len(batches), case.accumulate):
            window = batches[start : start + case.accumulate]
            optimizer.zero_grad()
            w = moved(params, rule.ahead([optimizer.state[param].get("momentum_buffer") for param in params]))
            losses += backward(window)
            put_back(params, w)
            grads: list[Any] = [param.grad for param in params]
            scale = 1.0 if scaler is None else scaler.get_scale()
            e = rule.e([grad / scale for grad in grads], step, EPOCHS * math.ceil(len(batches) / case.accumulate))
            if e is None:
                d = rule.plain(grads)
            else:
                w = moved(params, e)
                optimizer.zero_grad()
                backward(window)
                put_back(params, w)
                d = rule.d(grads, [param.grad for param in params if param.grad is not None])
            for param, grad in zip(params, d, strict=True):
                param.grad = grad
            step += 1
            if scaler is not None:
                scaler.unscale_(optimizer)
            if case.clipping == "norm":
                nn.utils.clip_grad_norm_(params, 0.1)
            if case.clipping == "value":
                nn.utils.clip_grad_value_(params, 0.02)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if case.scheduler == "step":
                scheduler.step()
        if case.scheduler == "epoch":
            scheduler.step()
        if case.scheduler == "plateau":
            scheduler.step(torch.stack(losses).mean())
    return [param.detach() for param in params]


def whole_batches() -> list[Any]:
    """The batches of all ranks together, as one process reads them."""
    x, y = (torch.cat(part) for part in zip(*loader(40, 40 * world_size(), torch.float32), strict=True))
    if world_size() > 1:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(40, 6, generator=generator, dtype=torch.float64).to(torch.float32)
        y = torch.randint(0, 3, (40,), generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def averaged() -> list[Any]:
    """An average of the weights from the first step on."""
    if SINCE["WeightAveraging"] > LIGHTNING:
        return []

    class Averaged(callbacks.WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None

    return [Averaged()]


def features(folder: Path) -> dict[str, dict[str, Any]]:
    """The Trainer options of each feature that is tried by itself."""
    return {
        "StochasticWeightAveraging": {"callbacks": [StochasticWeightAveraging(0.01, swa_epoch_start=1)]},
        "WeightAveraging": {"callbacks": averaged()},
        "EarlyStopping": {"callbacks": [EarlyStopping("val_loss", patience=0, min_delta=10.0)]},
        "ModelCheckpoint(every_n_train_steps=2)": {
            "callbacks": [ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)],
            "enable_checkpointing": True,
        },
        "ModelCheckpoint(monitor='val_loss')": {
            "callbacks": [ModelCheckpoint(folder, "best", monitor="val_loss")],
            "enable_checkpointing": True,
        },
        "GradientAccumulationScheduler": {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})]},
        "LearningRateMonitor": {"callbacks": [LearningRateMonitor("step")]},
        "detect_anomaly": {"detect_anomaly": True},
        "limit_train_batches": {"limit_train_batches": 3},
        "val_check_interval": {"val_check_interval": 2},
        "max_steps inside an epoch": {"max_steps": 6},
        "overfit_batches": {"overfit_batches": 2},
        "precision 64-true": {"precision": "64-true"},
    }


FEATURES = list(features(Path()))


ACCUMULATING = "GradientAccumulationScheduler"


@cache
def seen_with(feature: str | None, mixed: bool, accumulate: int) -> dict[str, Any]:
    """Everything that can be observed of a run with a feature, plain or with a forced second pass at rho = 0."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "files")
        options = {} if feature is None else features(folder)[feature]
        if feature != ACCUMULATING:
            options["accumulate_grad_batches"] = accumulate
        module = build(EverythingScheduled, "epoch")
        seen = observe(with_sam(module, FORCED) if mixed else module, max_epochs=EPOCHS, **options)
        files = {file.name: torch.load(file, weights_only=False) for file in sorted(folder.rglob("*.ckpt"))}
        # The folder's own name is in the state of ModelCheckpoint.
        return without_paths({"seen": seen, "files": files})


def feature_against_lightning(name: str, accumulate: int) -> list[str]:
    """Where a feature makes a forced second pass at rho = 0 differ from plain Lightning."""
    return differences(seen_with(name, False, accumulate), seen_with(name, True, accumulate))


def without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and tempfile.gettempdir() in value else value


def overflows() -> int:
    """How many steps the loss scaler skips in the cases that are to overflow."""
    case = Case(1, "16-mixed, overflows", "none", "epoch")
    made = fit(with_sam(build(PlainScheduled, "epoch"), SAM(RHO)), max_steps=3, **options_of(case))
    lowered: float = 2.0**21 / made.precision_plugin.scaler.get_scale()
    return round(math.log2(lowered))


def feature_does_something(name: str) -> bool:
    """Whether a run with the feature is another one than without, so that the comparison means something."""
    with_it, without = seen_with(name, True, 1), seen_with(None, True, 1)
    return bool(with_it["files"]) or differences(with_it["seen"], without["seen"]) != []
