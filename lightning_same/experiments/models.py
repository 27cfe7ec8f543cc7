"""Reference models."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import MLP, Conv2dNormActivation
from typing_extensions import override

from lightning_same.rules.settings import check_int

GROUP = 4
"""Channels in a group of GroupNorm."""

Norm = Literal["batch", "group", "none"]


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with a norm and ReLU, two of them of stride 2, then average pooling and a linear layer.

    With a ``pool`` above 1 the linear layer sees where a feature is, and fits wrong labels the sooner.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 1 for grey.
        width: channels after the first convolution; the second and third have twice and four times as many.
        pool: height and width to which the features are averaged.
        norm: after each convolution: ``"batch"`` for BatchNorm, ``"group"`` for GroupNorm in groups of 4 channels,
            ``"none"`` for none. Under BatchNorm a sample's loss depends on the others of its batch.

    Raises:
        ValueError: if ``norm`` is none of the three, a number is below 1, or ``width`` cannot be cut into groups.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 1, width: int = 32, pool: int = 1, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "pool": pool}
        for name, size in sizes.items():
            check_int(self, name, size, at_least=1)
        layer = _layer(type(self).__name__, norm, width, nn.BatchNorm2d)
        self.features = nn.Sequential(
            Conv2dNormActivation(in_channels, width, stride=2, norm_layer=layer),
            Conv2dNormActivation(width, 2 * width, stride=2, norm_layer=layer),
            Conv2dNormActivation(2 * width, 4 * width, norm_layer=layer),
            nn.AdaptiveAvgPool2d(pool),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width * pool**2, num_classes)

    @override
    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, in_channels, height, width), of any size."""
        logits: Tensor = self.head(self.features(image))
        return logits


class SmallMLP(nn.Module):
    """Two linear layers with a norm and ReLU over the flattened image, and a third that gives the logits.

    It fits wrong labels in a small part of the time that a convolutional network takes for them.

    Args:
        num_classes: number of classes.
        in_features: elements of an image: channels times height times width.
        width: outputs of the first two layers.
        norm: after each of them: ``"batch"`` for BatchNorm, ``"group"`` for GroupNorm in groups of 4, ``"none"`` for
            none. Under BatchNorm a sample's loss depends on the others of its batch.

    Raises:
        ValueError: if ``norm`` is none of the three, a number is below 1, or ``width`` cannot be cut into groups.
    """

    def __init__(self, num_classes: int, in_features: int = 784, width: int = 256, norm: Norm = "batch") -> None:
        super().__init__()
        for name, size in {"num_classes": num_classes, "in_features": in_features, "width": width}.items():
            check_int(self, name, size, at_least=1)
        layer = _layer(type(self).__name__, norm, width, nn.BatchNorm1d)
        self.layers = nn.Sequential(nn.Flatten(), MLP(in_features, [width, width, num_classes], norm_layer=layer))

    @override
    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, channels, height, width)."""
        logits: Tensor = self.layers(image)
        return logits


def _layer(model: str, norm: Norm, width: int, batch_norm: type[nn.Module]) -> Callable[[int], nn.Module] | None:
    """What makes the norm of so many channels, or None for none."""
    if norm not in get_args(Norm):
        raise ValueError(f"{model}: `norm` must be one of {', '.join(get_args(Norm))}, got {norm!r}.")
    if norm == "group" and width % GROUP:
        raise ValueError(f"{model}: with `norm='group'` `width` must be a multiple of {GROUP}, got {width!r}.")
    layers: dict[Norm, Callable[[int], nn.Module] | None] = {
        "batch": batch_norm,
        "group": _groups_of_channels,
        "none": None,
    }
    return layers[norm]


def _groups_of_channels(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP, channels)


class SmallImageResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet of basic blocks with the usual stem for 32x32 images: a 3x3 convolution, no max-pooling.

    The names in ``state_dict`` are torchvision's. He et al. 2016, https://arxiv.org/abs/1512.03385.

    Args:
        blocks: number of blocks in each of the four stages.
        num_classes: number of classes.
    """

    def __init__(self, blocks: list[int], num_classes: int) -> None:
        super().__init__(BasicBlock, blocks, num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        # As torchvision initialises the convolution that this one replaces.
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


class ResNet18(SmallImageResNet):
    """ResNet-18 for 32x32 images.

    Args:
        num_classes: number of classes; 100 give 11.2 million parameters.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__([2, 2, 2, 2], num_classes)


class ResNet34(SmallImageResNet):
    """ResNet-34 for 32x32 images.

    Args:
        num_classes: number of classes; 100 give 21.3 million parameters.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__([3, 4, 6, 3], num_classes)


class WideBlock(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, added to the input.

    Where the shape changes the input goes through a 1x1 convolution after the first ReLU.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride != 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if changes else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = skip + self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        return out


class WideResNet(nn.Module):
    """The wide residual network for 32x32 images, which torchvision does not have.

    Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146.

    Args:
        num_classes: number of classes; 10 give WRN-28-10 36.5 million parameters.
        depth: number of convolutions along the main path, 6 n + 4.
        width: factor on the 16, 32 and 64 channels of the three stages.
        dropout: probability of dropping an element between the two convolutions of a block.

    Raises:
        ValueError: if ``depth`` is not 6 n + 4.
    """

    def __init__(self, num_classes: int, depth: int = 28, width: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"WideResNet: `depth` must be 6 n + 4, such as 16, 28 or 40, got {depth!r}.")
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages, channels_in = [], 16
        for channels, stride in (16 * width, 1), (32 * width, 2), (64 * width, 2):
            for i in range(blocks):
                stages.append(WideBlock(channels_in, channels, stride if i == 0 else 1, dropout))
                channels_in = channels
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels_in)
        self.head = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @override
    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, 3, height, width)."""
        features = F.relu(self.norm(self.blocks(self.conv(image)))).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits


class ViTTiny(VisionTransformer):  # type: ignore[misc]
    """torchvision's vision transformer in the size of DeiT-Ti: 12 layers, 192 channels, 3 heads.

    Touvron et al. 2021, https://arxiv.org/abs/2012.12877; with patches of 4 pixels, as is usual on 32x32 images.

    Args:
        num_classes: number of classes; 100 give 5.4 million parameters.
        image_size: height and width of the images, which have three channels.
        patch_size: height and width of a patch; divides ``image_size``.
        dropout: probability of dropping an element after each layer's parts.
    """

    def __init__(self, num_classes: int, image_size: int = 32, patch_size: int = 4, dropout: float = 0.0) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_layers=12,
            num_heads=3,
            hidden_dim=192,
            mlp_dim=768,
            dropout=dropout,
            num_classes=num_classes,
        )
