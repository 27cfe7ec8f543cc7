"""The public names, and where they are: `__init__.py` loads each when it is first used."""

from .classifier import ImageClassifier
from .data import CIFAR10Data, CIFAR100Data, DigitsData, FashionMNISTData, NoisyImageData
from .images import Batch
from .models import ResNet18, ResNet34, SmallCNN, ViTTiny, WideResNet
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
    "ViTTiny",
    "WideResNet",
    "asymmetric_noise",
    "human_labels",
    "instance_noise",
    "pair_flip_noise",
    "symmetric_noise",
]
