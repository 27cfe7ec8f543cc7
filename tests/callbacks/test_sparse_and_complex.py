"""Embeddings with sparse gradients are measured as dense ones are; complex parameters are refused before training."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import fit, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_same import (
    CheckpointEffectMonitor,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    ReplayCheck,
    SharpnessMonitor,
    top_eigenvalue,
)


class Words(pl.LightningModule):
    """Classifies bags of words."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 3)

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.words(x).mean(1)), y, reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        random = torch.Generator().manual_seed(1)
        x, y = torch.randint(10, (24, 5), generator=random), torch.randint(3, (24,), generator=random)
        return DataLoader(TensorDataset(x, y), batch_size=8)


class Bags(Words):
    """By the layer that torch has for them, whose gradient has no derivative, dense or sparse."""

    def __init__(self, sparse: bool) -> None:
        super().__init__(sparse)
        self.words = nn.EmbeddingBag(10, 4, sparse=sparse)

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.words(x)), y, reduction="none")


class Wave(Words):
    """Has complex weights."""

    def __init__(self) -> None:
        super().__init__(sparse=False)
        self.phase = nn.Parameter(torch.ones(4, dtype=torch.cfloat))

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head((self.words(x).mean(1) * self.phase).abs()), y, reduction="none")


def is_noisy(batch: Any) -> Tensor:
    return batch[1] == 0


MONITORS: dict[str, Callable[[], Callback]] = {
    "fractions": lambda: CheckpointFractionMonitor(every_n_steps=1, per_layer=True, noisy_mask=is_noisy),
    "norms": lambda: GradientNormMonitor(every_n_steps=1, per_layer=True),
    "effects": lambda: CheckpointEffectMonitor(every_n_steps=1, noisy_mask=is_noisy),
    "sharpness": lambda: SharpnessMonitor(every_n_steps=2, adaptive=True, worst_case=0.05, gradient_curvature=True),
    "sharpness in train mode": lambda: SharpnessMonitor(every_n_steps=2, mode="train", dtype="float64"),
}


OF_BAGS = [(Bags, name) for name in MONITORS if "sharpness" not in name]


@pytest.mark.parametrize(("kind", "name"), [*((Words, name) for name in MONITORS), *OF_BAGS])
def test_sparse_embeddings_are_measured_as_dense_ones(kind: type[Words], name: str) -> None:
    module, dense, plain = kind(sparse=True), kind(sparse=False), kind(sparse=True)
    measured = fit(module, callbacks=[MONITORS[name]()]).callback_metrics
    expected = fit(dense, callbacks=[MONITORS[name]()]).callback_metrics
    assert measured.keys() == expected.keys()
    assert len(measured) > 5
    for key, value in expected.items():
        torch.testing.assert_close(measured[key], value, rtol=1e-4, atol=1e-6, equal_nan=True, msg=key)
    fit(plain)
    assert all(map(torch.equal, weights(plain), weights(module)))
    assert module.words.sparse
    assert module.words.weight.grad is not None
    assert module.words.weight.grad.is_sparse  # of the last step


def test_a_step_with_sparse_gradients_can_be_checked() -> None:
    check = ReplayCheck(every_n_steps=1)
    fit(Words(sparse=True), callbacks=[check])
    assert check.report is not None
    assert check.report.is_right


def test_curvature_of_sparse_embeddings() -> None:
    module, dense = Words(sparse=True), Words(sparse=False)
    batch = next(iter(module.train_dataloader()))
    value = top_eigenvalue(lambda: module.losses(batch).mean(), module).value
    assert value == pytest.approx(top_eigenvalue(lambda: dense.losses(batch).mean(), dense).value, rel=1e-5)
    with pytest.raises(RuntimeError, match=r"a gradient is sparse.*sparse=False, or give the module"):
        top_eigenvalue(lambda: module.losses(batch).mean(), module.parameters())


@pytest.mark.parametrize("name", MONITORS)
def test_complex_parameters_are_refused_before_training(name: str) -> None:
    module, monitor = Wave(), MONITORS[name]()
    before = weights(module)
    with pytest.raises(RuntimeError, match=rf"{type(monitor).__name__}: Wave has complex parameters.*view_as_real"):
        fit(module, callbacks=[monitor])
    assert all(map(torch.equal, before, weights(module)))


def test_a_step_with_complex_parameters_can_be_checked() -> None:
    check = ReplayCheck(every_n_steps=1)
    fit(Wave(), callbacks=[check])
    assert check.report is not None
    assert check.report.is_right
