"""The models of the experiments."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_same.experiments import ResNet18, ResNet34, SmallCNN, SmallMLP, ViTTiny, WideResNet


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_cnn_takes_any_size(size: int, channels: int) -> None:
    model = SmallCNN(7, in_channels=channels, width=4)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_resnet18_has_the_stem_for_small_images() -> None:
    model = ResNet18(100)
    assert parameter_count(model) == 11_220_132
    stem = model.maxpool(model.relu(model.bn1(model.conv1(torch.randn(2, 3, 32, 32)))))
    assert stem.shape == (2, 64, 32, 32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        # As published, or counted by hand where the stem or the patches are those of small images.
        (lambda: ResNet34(10), 21_282_122),
        (lambda: WideResNet(10), 36_479_194),
        (lambda: WideResNet(10, depth=40, width=2), 2_243_546),
        (lambda: ViTTiny(100), 5_380_132),
    ],
)
def test_models_have_the_size_of_their_papers(build: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        assert parameter_count(build()) == parameters


@pytest.mark.parametrize("build", [lambda: ViTTiny(7), lambda: WideResNet(7, depth=10, width=1, dropout=0.1)])
def test_models_give_logits_and_learn(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, image, label = build(), torch.randn(4, 3, 32, 32), torch.arange(4)
    assert model(image).shape == (4, 7)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        losses.append(nn.functional.cross_entropy(model(image), label))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_depth_of_a_wide_resnet_fits_its_blocks() -> None:
    with pytest.raises(ValueError, match=r"`depth` must be 6 n \+ 4, .* got 27"):
        WideResNet(10, depth=27)


def test_the_features_grow_smaller_from_stage_to_stage() -> None:
    """As in the papers; no number of parameters tells it."""

    def shapes(layers: Iterable[nn.Module]) -> list[tuple[int, ...]]:
        x, found = torch.randn(2, 3, 32, 32), []
        for layer in layers:
            x = layer(x)
            found.append(tuple(x.shape[1:]))
        return found

    wide = WideResNet(10, depth=16, width=1)
    stages = [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert shapes([wide.conv, *wide.blocks]) == [stages[0], *(stage for stage in stages for _ in range(2))]
    assert shapes(SmallCNN(10, in_channels=3, width=4).features)[:3] == [(4, 16, 16), (8, 8, 8), (16, 8, 8)]
    resnet = ResNet18(10)
    stages = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    layers = [resnet.conv1, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    assert shapes(layers) == [stages[0], *stages]
    vit = ViTTiny(10)
    assert [layer.num_heads for layer in vit.encoder.layers] == [3] * 12
    assert vit.conv_proj.stride == (4, 4)


@pytest.mark.parametrize("pool", [1, 4])
def test_small_cnn_pools_to_the_size_given(pool: int) -> None:
    model = SmallCNN(10, width=4, pool=pool)
    assert model.head.in_features == 16 * pool**2
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_small_mlp_has_the_layers_that_are_said() -> None:
    model = SmallMLP(10, in_features=64, width=12, norm="none")
    assert [layer.weight.shape for layer in model.modules() if isinstance(layer, nn.Linear)] == [
        (12, 64),
        (12, 12),
        (10, 12),
    ]
    image = torch.randn(3, 1, 8, 8)
    first, second, last = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(model(image), last(second(first(image.flatten(1)).relu()).relu()))


@pytest.mark.parametrize(
    ("build", "kind", "count"),
    [
        (lambda **norm: SmallCNN(10, width=4, **norm), nn.BatchNorm2d, 3),
        (lambda **norm: SmallMLP(10, 64, width=4, **norm), nn.BatchNorm1d, 2),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_small_model_has_the_norm_that_is_asked_for(
    build: Callable[..., nn.Module], kind: type[nn.Module], count: int, norm: str
) -> None:
    model = build(norm=norm)
    norms = [module for module in model.modules() if isinstance(module, kind | nn.GroupNorm)]
    expected = {"batch": [kind] * count, "group": [nn.GroupNorm] * count, "none": []}
    assert [type(module) for module in norms] == expected[norm]
    if norm != "batch":  # then no sample depends on another
        x = torch.randn(5, 1, 8, 8)
        torch.testing.assert_close(model(x)[:2], model(x[:2]))


@pytest.mark.parametrize("model", [SmallCNN, SmallMLP])
@pytest.mark.parametrize(("options", "told"), [({"norm": "layer"}, "'layer'"), ({"norm": "group", "width": 6}, "6")])
def test_a_norm_that_cannot_be_is_refused(model: type[nn.Module], options: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"{model.__name__}: .* got {told}"):
        model(10, **options)
