"""Reference models."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import Conv2dNormActivation
from typing_extensions import override


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm and ReLU, two of them of stride 2, then average pooling and a linear layer.

    With a ``pool`` above 1 the linear layer sees where a feature is, and fits wrong labels the sooner.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 1 for grey.
        width: channels after the first convolution; the second and third have twice and four times as many.
        pool: height and width to which the features are averaged.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 32, pool: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2dNormActivation(in_channels, width, stride=2),
            Conv2dNormActivation(width, 2 * width, stride=2),
            Conv2dNormActivation(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(pool),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width * pool**2, num_classes)

    @override
    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, in_channels, height, width), of any size."""
        logits: Tensor = self.head(self.features(image))
        return logits


class ResNet18(ResNet):  # type: ignore[misc]
    """torchvision's ResNet-18 with the usual stem for 32x32 images: a 3x3 convolution of stride 1 and no max-pooling.

    The names in ``state_dict`` are torchvision's. He et al. 2016, https://arxiv.org/abs/1512.03385.

    Args:
        num_classes: number of classes; 100 give 11.2 million parameters.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        # As torchvision initialises the convolution that this one replaces.
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
