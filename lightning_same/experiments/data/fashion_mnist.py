"""Fashion-MNIST, from Debian's package, from files, or downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torchvision import datasets
from typing_extensions import override

from lightning_same.experiments.data.noisy_images import NoisyImageData, explained_download
from lightning_same.experiments.images import Images, read_idx


class FashionMNIST(datasets.FashionMNIST):  # type: ignore[misc]
    """torchvision's, first by https. The checksums are torchvision's, and its name is that of the folder."""

    mirrors: ClassVar[list[str]] = [
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        *datasets.FashionMNIST.mirrors,
    ]


class FashionMNISTData(NoisyImageData):
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28x28 grey, in 10 classes. https://arxiv.org/abs/1708.07747.

    Reads the four ``.gz`` files of the data set from ``data_dir``. Without ``data_dir`` the Debian package
    ``dataset-fashion-mnist`` is read if it is installed; else torchvision downloads to ``data``, or to the ``data_dir``
    that lacks the files. Augmented by shifts of up to two pixels and left-right flips. The class map is that of Zhang
    and Sabuncu 2018: boot -> sneaker -> sandal, pullover -> shirt, coat <-> dress.
    """

    DEBIAN: ClassVar[Path] = Path("/usr/share/datasets/fashion-mnist")
    """Where the Debian package ``dataset-fashion-mnist`` puts its files."""

    num_classes = 10
    image_shape = (1, 28, 28)
    mean = (0.286,)
    std = (0.353,)
    padding = 2
    flip = True
    class_map: ClassVar[Mapping[int, int]] = {9: 7, 7: 5, 2: 6, 4: 3, 3: 4}

    @override
    def download(self) -> None:
        """Let torchvision download to ``data_dir``, unless the files are there or Debian's are."""
        if self._idx_folder() is None:
            with explained_download(self, "Install Debian's dataset-fashion-mnist, or put its four .gz files there."):
                FashionMNIST(self.data_dir or "data", download=True)

    @override
    def read(self, train: bool) -> Images:
        """Return the official training or test images."""
        folder = self._idx_folder()
        if folder is None:
            data = FashionMNIST(self.data_dir or "data", train=train)
            return Images(data.data[:, None], data.targets)
        part = "train" if train else "t10k"
        image = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
        return Images(image[:, None], read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long())

    def _idx_folder(self) -> Path | None:
        folder = self.DEBIAN if self.data_dir is None else Path(self.data_dir)
        return folder if (folder / "train-images-idx3-ubyte.gz").exists() else None
