"""The public names, and where they are: `__init__.py` loads each when it is first used."""

from .classifier import ImageClassifier
from .data.cifar import CIFAR10Data, CIFAR100Data
from .data.digits import DigitsData
from .data.fashion_mnist import FashionMNISTData
from .data.noisy_images import NoisyImageData
from .images import Batch
from .models import ResNet18, ResNet34, SmallCNN, SmallMLP, ViTTiny, WideResNet
from .noise import (
    asymmetric_noise,
    human_labels,
    instance_noise,
    pair_flip_noise,
    symmetric_noise,
)

__all__ = [
    "Batch",
    "CIFAR10Data",
    "CIFAR100Data",
    "DigitsData",
    "FashionMNISTData",
    "ImageClassifier",
    "NoisyImageData",
    "ResNet18",
    "ResNet34",
    "SmallCNN",
    "SmallMLP",
    "ViTTiny",
    "WideResNet",
    "asymmetric_noise",
    "human_labels",
    "instance_noise",
    "pair_flip_noise",
    "symmetric_noise",
]
