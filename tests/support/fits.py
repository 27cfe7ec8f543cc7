"""Fits without noise, and a way to see everything that one leaves behind."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from support.nets import Everything, seed_all

LIGHTNING = tuple(int(number) for number in pl.__version__.split(".")[:2])
"""The version of Lightning, for what its oldest supported one lacks."""


class RowLogger(Logger):
    """Keeps what is logged, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = "rows"
    version = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class HookOrder(Callback):
    """Keeps the order in which the Trainer calls the hooks that tell steps apart."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.order.append("batch start")

    def on_train_batch_end(self, *args: Any) -> None:
        self.order.append("batch end")

    def on_before_zero_grad(self, *args: Any) -> None:
        self.order.append("before zero_grad")

    def on_before_backward(self, *args: Any) -> None:
        self.order.append("before backward")

    def on_after_backward(self, *args: Any) -> None:
        self.order.append("after backward")

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.order.append("before step")

    def on_train_epoch_end(self, *args: Any) -> None:
        self.order.append("epoch end")


def trainer(**options: Any) -> pl.Trainer:
    if options.get("precision") == "16-scaled":
        # By name, Lightning turns float16 into bfloat16 on a CPU.
        del options["precision"]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**{**quiet, **options})


def fit(module: pl.LightningModule, **options: Any) -> pl.Trainer:
    """Fit from a fixed random state and return the Trainer."""
    seed_all(1)
    made = trainer(**options)
    made.fit(module)
    return made


def go_on(made: pl.Trainer, module: pl.LightningModule, file: Path | str | None, weights_only: bool = True) -> None:
    """Fit on from a checkpoint file, or from the beginning if there is none.

    Lightning 2.6.0 brought `weights_only`; releases before it unpickle everything in the file.
    """
    options = {} if file is None or LIGHTNING < (2, 6) else {"weights_only": weights_only}
    made.fit(module, ckpt_path=file, **options)


def observed_fit(module: pl.LightningModule, folder: Path, save: bool = True, **options: Any) -> dict[str, Any]:
    """Everything that can be observed of a fit."""
    logger, hooks = RowLogger(), HookOrder()
    callbacks = [hooks, *options.pop("callbacks", [])]
    made = fit(module, logger=logger, callbacks=callbacks, **options)
    file = folder / "end.ckpt"
    made.save_checkpoint(file)
    return {
        "state_dict": {name: value.clone() for name, value in module.state_dict().items()},
        "buffers": {name: value.clone() for name, value in module.named_buffers()},
        "history": getattr(module, "history", None),
        "attributes": {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in ("generator", "sam", "two_pass", "forward")
        },
        "generator": module.generator.get_state() if isinstance(module, Everything) else None,
        "rows": logger.rows,
        "hooks": hooks.order,
        "checkpoint file": torch.load(file, weights_only=False) if save else None,
        "rng": [torch.get_rng_state(), random.getstate(), [*np.random.get_state()]],
        "losses": module.losses.compute() if isinstance(module, Everything) else None,
        "global_step": made.global_step,
        "metrics": dict(made.callback_metrics),
        "grads": [param.grad for param in module.parameters()],
    }


def differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Where two nested values differ, bit for bit; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape and torch.equal(one.isnan(), two.isnan())
        return [] if same and torch.equal(one.nan_to_num(), two.nan_to_num()) else [path]
    if isinstance(one, np.ndarray):
        return [] if np.array_equal(one, two) else [path]
    if isinstance(one, Mapping):
        if list(one) != list(two):
            return [f"{path}: {list(one)} != {list(two)}"]
        return [found for key in one for found in differences(one[key], two[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return [f"{path}: {len(one)} != {len(two)} items"]
        return [
            found for i, (a, b) in enumerate(zip(one, two, strict=True)) for found in differences(a, b, f"{path}/{i}")
        ]
    return [] if one is two or one == two else [f"{path}: {one!r} != {two!r}"]


def weights(module: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in module.parameters()]
