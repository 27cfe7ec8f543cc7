"""Fits of a member of the zoo, and everything that can be observed of one."""

import copy
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from support.fits import LIGHTNING, HookOrder, RowLogger, trainer
from support.monitored import OWN
from support.nets import seed_all
from torch.utils.data import DataLoader, Dataset

from zoo.state import state_of

EPOCHS = 2

Batches = Sequence[Any] | None
"""None stands for a module that brings its own."""

MONITORED = (*OWN, "sharpness/")
"""What the monitors log begins so."""


class Copies(Dataset[Any]):
    """Copies of batches, since a training step may write to its own."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return copy.deepcopy(self.batches[index])


def _same(batch: Any) -> Any:
    return batch


def loader(batches: Sequence[Any]) -> DataLoader[Any]:
    """Gives the batches in their order; each of n ranks gets every n-th one. Draws no global random number."""
    if torch.distributed.is_initialized():
        batches = batches[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    return DataLoader(Copies(batches), batch_size=None, collate_fn=_same, generator=torch.Generator())


def start(module: pl.LightningModule, batches: Batches, file: Path | None = None, **options: Any) -> pl.Trainer:
    """Fit from the random state of the moment, on or from a checkpoint file, and return the Trainer."""
    if torch.distributed.is_initialized():
        ddp: Any = {"find_unused_parameters": True, "process_group_backend": "gloo"}
        options |= {"devices": torch.distributed.get_world_size(), "strategy": DDPStrategy(**ddp)}
    made = trainer(**{"max_epochs": EPOCHS, **options})
    unpickle = {} if file is None or LIGHTNING < (2, 6) else {"weights_only": False}
    made.fit(module, module.train_dataloader() if batches is None else loader(batches), ckpt_path=file, **unpickle)
    return made


def observed(module: pl.LightningModule, batches: Batches, *callbacks: Callback, **options: Any) -> dict[str, Any]:
    """Everything that can be observed of a fit; what the monitors log is apart, under "monitored"."""
    logger, hooks = RowLogger(), HookOrder()
    seed_all(1)
    made = start(module, batches, logger=logger, callbacks=[hooks, *callbacks], **options)
    numbers = random_states()
    saved: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "end.ckpt")
        made.save_checkpoint(file)
        if made.is_global_zero:
            saved = torch.load(file, weights_only=False)
    # What the monitors and the mixin add.
    saved.pop("callbacks", None)
    saved.pop("lightning_same", None)
    return {
        "weights": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "grads": {name: state_of(param.grad) for name, param in module.named_parameters()},
        "module": state_of(module),
        "optimizers": [state_of(optimizer.state_dict()) for optimizer in made.optimizers],
        "file": state_of(saved),
        "random numbers": state_of(numbers),
        "rows": _rows(logger, monitored=False),
        "metrics": state_of({k: v for k, v in made.callback_metrics.items() if not k.startswith(MONITORED)}),
        "hooks": hooks.order,
        "global_step": made.global_step,
        "monitored": _rows(logger, monitored=True),
    }


def _rows(logger: RowLogger, monitored: bool) -> list[tuple[int | None, dict[str, float]]]:
    """Without the epoch, which Lightning adds to every row."""
    rows = []
    for step, row in logger.rows:
        kept = {key: value for key, value in row.items() if key != "epoch" and key.startswith(MONITORED) is monitored}
        if kept:
            rows.append((step, kept))
    return rows


def random_states() -> list[Any]:
    """Those of torch, Python and numpy."""
    return [torch.get_rng_state(), random.getstate(), np.random.get_state()]


def set_random_states(states: Sequence[Any]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


def built(make: Callable[[], pl.LightningModule]) -> pl.LightningModule:
    """A module with the same initial weights every time."""
    seed_all(0)
    return make()
