"""The LightningModules of `pytorch_forecasting`."""

import functools
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from torch import Tensor

from zoo.member import Distributed, Member

forecasting = pytest.importorskip(
    "pytorch_forecasting", reason="needs pytorch-forecasting: pip install 'lightning-same[zoo]'"
)

COMMON: dict[str, Any] = {"learning_rate": [0.01, 0.005], "log_interval": -1}


@functools.cache
def series(**options: Any) -> Any:
    """Two sines of 24 points with noise, and what a forecast is made of."""
    import pandas as pd

    time = np.arange(24)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 24))
    frame = pd.concat(
        pd.DataFrame({"time": time, "name": name, "value": 2 + np.sin(time / (2 + i)) + noise[i], "price": time % 5.0})
        for i, name in enumerate(("one", "two"))
    ).reset_index(drop=True)
    return forecasting.TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["name"],
        max_encoder_length=6,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
        **options,
    )


def batches_of(data: Any) -> Any:
    batches = list(data.to_dataloader(train=False, batch_size=8, num_workers=0))[:4]
    return apply_to_collection(
        batches, Tensor, lambda tensor: tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
    )


class TestTemporalFusionTransformer(Distributed):
    copies: ClassVar[bool] = False  # Its metric keeps graphs.
    load: ClassVar[dict[str, Any] | None] = {"weights_only": False}

    @staticmethod
    def data() -> Any:
        return series(static_categoricals=("name",), time_varying_known_reals=("price",))

    @classmethod
    def make(cls) -> pl.LightningModule:
        return forecasting.TemporalFusionTransformer.from_dataset(
            cls.data(), hidden_size=8, attention_head_size=2, hidden_continuous_size=4, dropout=0.1, **COMMON
        )

    @classmethod
    def batches(cls) -> Any:
        return batches_of(cls.data())


class TestDeepAR(Member):
    copies: ClassVar[bool] = False  # Its metric keeps graphs.
    load: ClassVar[dict[str, Any] | None] = {"weights_only": False}

    @staticmethod
    def make() -> pl.LightningModule:
        return forecasting.DeepAR.from_dataset(series(), hidden_size=8, rnn_layers=2, dropout=0.1, **COMMON)

    @staticmethod
    def batches() -> Any:
        return batches_of(series())


class TestNHiTS(Member):
    """With Ranger, which looks ahead and centers the gradients."""

    copies: ClassVar[bool] = False  # Its metric keeps graphs.
    load: ClassVar[dict[str, Any] | None] = {"weights_only": False}

    @staticmethod
    def make() -> pl.LightningModule:
        return forecasting.NHiTS.from_dataset(
            series(), hidden_size=8, optimizer="ranger", backcast_loss_ratio=0.5, dropout=0.1, **COMMON
        )

    @staticmethod
    def batches() -> Any:
        return batches_of(series())
