"""Curvature on a GPU in full precision, whatever TF32 flags say, of recurrent layers and attention too."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from gpu.machine import DEVICE, fit
from gpu.nets import Attentive, Convolutional, Noted, Recurrent, made
from lightning_same import Hessian, SharpnessMonitor, top_eigenvalue

pytestmark = pytest.mark.gpu

SETTINGS = ["highest", "high", "medium"]
KINDS = [Noted, Convolutional, Recurrent, Attentive]


@pytest.fixture(params=SETTINGS)
def allowed(request: pytest.FixtureRequest) -> Iterator[str]:
    """What float32 products may be rounded to."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(request.param)
    torch.backends.cudnn.allow_tf32 = request.param != "highest"
    yield request.param
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def loss_of(kind: type[Noted], dtype: torch.dtype, train: bool) -> tuple[Callable[[], torch.Tensor], Any]:
    module = made(kind, None).to(DEVICE, dtype)
    module.train(train)
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.RNNBase):
            layer.dropout = 0.0
    x, y = (part.to(DEVICE) for part in next(iter(module.train_dataloader())))
    return lambda: nn.functional.cross_entropy(module(x.to(dtype)), y), module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("allowed")
def test_a_product_is_that_of_float64(kind: type[Noted]) -> None:
    products = []
    for dtype in (torch.float32, torch.float64):
        loss, module = loss_of(kind, dtype, train=False)
        hessian = Hessian(loss, module)
        draws = torch.Generator().manual_seed(0)
        vector = torch.randn(hessian.size, generator=draws, dtype=torch.float64).to(DEVICE, dtype)
        products.append((hessian @ vector).double())
    error = (products[0] - products[1]).norm() / products[1].norm()
    assert error < 2e-5, "TF32 would make it 1e-4 to 1e-3"


@pytest.mark.parametrize("kind", [Noted, Recurrent, Convolutional])
def test_in_train_mode_too(kind: type[Noted]) -> None:
    """Given parameters, the loss is taken in the mode that the module is in."""
    loss, module = loss_of(kind, torch.float32, train=True)
    params = [param for param in module.parameters() if param.requires_grad]
    in_train = top_eigenvalue(loss, params)
    assert in_train.converged
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_measures_beside_training(kind: type[Noted], mode: Any) -> None:
    monitor = SharpnessMonitor(every_n_epochs=1, mode=mode)
    made_trainer = fit(made(kind, None), callbacks=[monitor], precision="bf16-mixed")
    assert made_trainer.callback_metrics["sharpness/top_eigenvalue"].isfinite()
