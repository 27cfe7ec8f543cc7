"""The LightningModule that trains `scvi` models."""

from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch

from zoo.data import numbers
from zoo.member import Member

scvi = pytest.importorskip("scvi", reason="needs scvi-tools: pip install 'lightning-same[zoo]'")


class TestScvi(Member):
    """A variational autoencoder: random draws in the loss, whose weights change from step to step."""

    double: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5
    load: ClassVar[dict[str, Any] | None] = None  # A plan's hyper-parameters do not hold its model.

    @staticmethod
    def make() -> pl.LightningModule:
        model = scvi.module.VAE(n_input=12, n_batch=2, n_hidden=8, n_latent=3, n_layers=1)
        return scvi.train.TrainingPlan(model, n_epochs_kl_warmup=None, n_steps_kl_warmup=6)

    @staticmethod
    def batches() -> Any:
        given = numbers()
        keys = scvi.REGISTRY_KEYS
        return [
            {
                keys.X_KEY: torch.randint(0, 9, (6, 12), generator=given).float(),
                keys.BATCH_KEY: torch.randint(0, 2, (6, 1), generator=given),
                keys.LABELS_KEY: torch.zeros(6, 1, dtype=torch.long),
            }
            for _ in range(4)
        ]
