"""scikit-learn's handwritten digits."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from sklearn.datasets import load_digits
from typing_extensions import override

from lightning_same.experiments.data.noisy_images import NoisyImageData
from lightning_same.experiments.images import Images


class DigitsData(NoisyImageData):
    """scikit-learn's 1797 handwritten digits, 8x8 grey, in 10 classes; comes with scikit-learn.

    There is no official test split; a fifth of the images, stratified by class, is held out with ``split_seed``.
    Augmented by shifts of up to one pixel. The class map is the usual one of MNIST: 2 -> 7, 3 -> 8, 5 <-> 6, 7 -> 1.
    """

    num_classes = 10
    image_shape = (1, 8, 8)
    mean = (0.305,)
    std = (0.376,)
    padding = 1
    class_map: ClassVar[Mapping[int, int]] = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}

    @override
    def read(self, train: bool) -> Images:
        """Return the training or the test images, the pixels scaled from 0..16 to 0..255."""
        digits = load_digits()
        image = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
        return self.split(Images(image, torch.from_numpy(digits.target)), 0.2)[0 if train else 1]
