"""Curvature in full float32, whatever TF32 flags say, and recurrent layers without cuDNN."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import script
from support.float32_settings import SETTINGS
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_same.curvature import differentiable
from lightning_same.curvature.full_precision import RecurrentWithoutCudnn, ieee_float32, without_cudnn

SCRIPT = Path(__file__).parents[1] / "support" / "float32_settings.py"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is allowed before, within and after a product, by what the user has set."""
    ran = script(SCRIPT, folder=tmp_path_factory.mktemp("settings"))
    assert ran.code == 0, ran.err
    return dict(json.loads(line) for line in ran.out.splitlines())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_product_is_taken_in_float32_and_the_settings_stay(settings: dict[str, Any], name: str) -> None:
    if name not in settings and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this release of torch has the older settings alone")
    before, within, after = settings[name]
    assert after == before
    assert within.get("matmul", False) in (False, "raises")
    assert within.get("cudnn", False) in (False, "raises")
    fine = {key: value for key, value in within.items() if "." in key and key != "cudnn.enabled"}
    assert set(fine.values()) <= {"ieee", "none"}


def test_the_settings_are_told_apart(settings: dict[str, Any]) -> None:
    """Without which the test above would prove nothing."""
    assert settings["older"][0]["matmul"] is True
    assert settings["medium"][0]["precision"] == "medium"
    if "newer, all" in settings:
        assert settings["newer, all"][0]["matmul"] == "raises"


class Seen(TorchFunctionMode):
    """Notes whether cuDNN may be taken by each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, bool] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[getattr(func, "__name__", "")] = torch.backends.cudnn.enabled
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("layer", "name"), [(nn.LSTM, "lstm"), (nn.GRU, "gru"), (nn.RNN, "rnn_tanh")])
def test_recurrent_layers_go_without_cudnn_in_train_mode_too(layer: Any, name: str) -> None:
    seen = Seen()
    net, convolution = layer(3, 4), nn.Conv1d(4, 2, 1)
    with seen, RecurrentWithoutCudnn():
        convolution(net(torch.ones(5, 2, 3))[0].transpose(1, 2))
    assert seen.calls[name] is False
    assert seen.calls["conv1d"] is True
    assert torch.backends.cudnn.enabled


def test_a_curvature_on_cuda_takes_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    class Entered(RecurrentWithoutCudnn):
        def __enter__(self) -> Any:
            entered.append(True)
            return super().__enter__()

    monkeypatch.setattr(differentiable, "RecurrentWithoutCudnn", Entered)
    with differentiable.twice_differentiable(torch.device("cpu")):
        assert not entered
    with differentiable.twice_differentiable(torch.device("cuda")):
        assert entered


def test_the_settings_come_back_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), ieee_float32(), without_cudnn():
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.enabled
    finally:
        torch.set_float32_matmul_precision(before)
