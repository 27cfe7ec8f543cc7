"""Where the tests run: on GPUs, or in a rehearsal on the CPU."""

import os
from typing import Any

import lightning.pytorch as pl
import torch
from support.fits import trainer
from support.nets import seed_all

REHEARSAL = bool(os.environ.get("LIGHTNING_SAME_REHEARSAL"))
GPUS = 0 if REHEARSAL else torch.cuda.device_count()
DEVICE = "cpu" if REHEARSAL else "cuda"
BACKEND = "gloo" if REHEARSAL else "cpu:gloo,cuda:nccl"


def fit(module: pl.LightningModule, ckpt_path: str | None = None, **options: Any) -> pl.Trainer:
    """Fit on this process's device from a fixed random state."""
    if options.get("precision") == "16-mixed" and REHEARSAL:
        options["precision"] = "16-scaled"
    seed_all(1)
    made = trainer(**{"accelerator": "cpu" if REHEARSAL else "gpu", **options})
    made.fit(module, ckpt_path=ckpt_path)
    return made
