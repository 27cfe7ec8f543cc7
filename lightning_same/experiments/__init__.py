"""What the study is made of: image data with label noise, reference models and a plain classifier.

Nothing here knows of SAM, so that every method trains the same module on the same data.
"""

from lightning_same.experiments.classifier import ImageClassifier
from lightning_same.experiments.data import CIFAR10Data, CIFAR100Data, DigitsData, FashionMNISTData, NoisyImageData
from lightning_same.experiments.images import Batch
from lightning_same.experiments.models import ResNet18, ResNet34, SmallCNN, ViTTiny, WideResNet
from lightning_same.experiments.noise import (
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
