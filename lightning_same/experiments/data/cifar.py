"""CIFAR-10 and CIFAR-100, with CIFAR-N's labels given by people."""

import zipfile
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from typing_extensions import override

from lightning_same.cli.errors import one_line
from lightning_same.experiments.data.noisy_images import NoisyImageData, explained_download
from lightning_same.experiments.images import Images, check_images
from lightning_same.experiments.noise import human_labels

MAX_LABEL_FILE = 2**26
"""Bytes of a file of labels when it is unpacked; CIFAR-N's take a few MB."""


class CIFAR10Data(NoisyImageData):
    """CIFAR-10: 50,000 + 10,000 colour images, 32x32, in 10 classes, downloaded to ``data_dir`` by torchvision.

    Augmented as usual: a random crop after 4 pixels of padding, and left-right flips. The class map is that of Patrini
    et al. 2017: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog.
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf.

    Args:
        label_file: with ``noise="file"``, the file of CIFAR-N labels; see `human_labels`.
        label_set: which labels of that file.
        kwargs: as of every data set.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    padding = 4
    flip = True
    class_map: ClassVar[Mapping[int, int]] = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}

    source: ClassVar[type] = CIFAR10

    def __init__(self, label_file: str | None = None, label_set: str = "worse_label", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if (self.noise == "file") != (label_file is not None):
            raise ValueError(
                f'{type(self).__name__}: `noise="file"` and `label_file` go together, got noise={self.noise!r},'
                f" label_file={label_file!r}."
            )
        self.label_file = label_file
        self.label_set = label_set

    @override
    def download(self) -> None:
        """Let torchvision download the archive, unless it is there."""
        with explained_download(self, "Put the unpacked archive of the data set's page there."):
            self.source(self.data_dir or "data", download=True)

    @override
    def read(self, train: bool) -> Images:
        """Return the official training or test images."""
        data = self.source(self.data_dir or "data", train=train)
        return Images(torch.from_numpy(data.data).movedim(-1, 1).contiguous(), torch.tensor(data.targets))

    @override
    def noisy_labels(self, images: Images, index: Tensor) -> Tensor:
        """The labels to train on: made up, or out of ``label_file``."""
        if self.label_file is not None:
            return self._labels_of_people(self.label_file, images.label)[index]
        return super().noisy_labels(images, index)

    def _labels_of_people(self, path: str, true: Tensor) -> Tensor:
        """The labels of a file, once it is known that there is one for each image."""
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    size = sum(entry.file_size for entry in archive.infolist())
                if size > MAX_LABEL_FILE:
                    raise ValueError(f"it would take {size} bytes unpacked.")
            labels = human_labels(path, self.label_set, true)
        except MemoryError:
            raise
        except Exception as error:  # whatever a file that is none makes the unpickler do
            if isinstance(error, ValueError) and "`label_" in str(error):
                raise
            raise ValueError(f"`label_file`: {path!r} cannot be read: {one_line(error)}") from error
        try:
            check_images(Images(torch.empty(len(true), 0, dtype=torch.uint8), labels), (0,), self.num_classes)
        except ValueError as error:
            raise ValueError(f"`label_set`: {self.label_set!r} in {path!r} is not for these images: {error}") from None
        return labels


# The superclass of each class of CIFAR-100, both in the order of the data set's page.
_SUPERCLASS = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip


def _next_of_superclass() -> dict[int, int]:
    families = [[c for c, family in enumerate(_SUPERCLASS) if family == k] for k in range(20)]
    return {c: family[(i + 1) % len(family)] for family in families for i, c in enumerate(family)}


class CIFAR100Data(CIFAR10Data):
    """CIFAR-100: as CIFAR-10, with 100 classes.

    The class map leads to the next class of the same superclass, around each ring of five (Patrini et al. 2017).

    Args:
        label_file: with ``noise="file"``, the file of CIFAR-N labels; see `human_labels`.
        label_set: which labels of that file.
        kwargs: as of every data set.
    """

    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    class_map = _next_of_superclass()
    source = CIFAR100

    def __init__(self, label_file: str | None = None, label_set: str = "noisy_label", **kwargs: Any) -> None:
        super().__init__(label_file, label_set, **kwargs)
