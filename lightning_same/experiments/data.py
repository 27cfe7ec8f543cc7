"""Image classification data whose training labels are partly wrong."""

import abc
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.datasets import CIFAR10, CIFAR100
from typing_extensions import override

from lightning_same.cli.errors import one_line
from lightning_same.experiments.images import (
    Batch,
    ImageDataset,
    Images,
    as_is,
    check_images,
    read_idx,
)
from lightning_same.experiments.noise import (
    asymmetric_noise,
    human_labels,
    instance_noise,
    pair_flip_noise,
    symmetric_noise,
)

MAX_SEED = 2**32 - 1
"""numpy's seeds, by which the splits are drawn, go as far."""

MAX_LABEL_FILE = 2**26
"""Bytes of a file of labels when it is unpacked; CIFAR-N's take a few MB."""

Noise = Literal["none", "symmetric", "asymmetric", "pair_flip", "instance", "file"]

MOST: Mapping[str, float] = {"asymmetric": 0.4, "pair_flip": 0.45}
"""The largest rates of noise that leads to one other class: those that the papers use."""


class NoisyImageData(LightningDataModule, abc.ABC):
    """Training images with label noise; validation and test images with true labels.

    The validation split is drawn from the training images, stratified by class. Splits and noise depend on
    ``split_seed`` and ``noise_seed`` alone: they are the same whatever the method, the global seed and the rank. The
    order of the samples and the augmentation follow the global seed.

    With ``train_eval`` there are two validation loaders: the clean validation images, and after them the training
    images as they are, without augmentation and in a fixed order, with the labels to train on.

    Args:
        noise_rate: share of the training labels that is replaced by another class, from 0 to below 1; at most 0.4 with
            asymmetric noise and 0.45 with pair flips. What it means for each kind of noise stands in
            `lightning_same.experiments.noise`; ``realised_noise_rate`` is what came of it.
        noise_seed: seed of the noise.
        split_seed: seed of the splits.
        val_fraction: share of the training images that is kept for validation, above 0 and below 1.
        batch_size: samples per batch and per process in training, and in evaluation without ``eval_batch_size``.
        num_workers: worker processes per loader; batches are cheap, so that 0 is seldom the slower choice.
        augment: whether to shift and mirror training images at random, as far as the data set bears it.
        data_dir: folder that holds the data set's files or shall receive them; by default ``data``. Not used by data
            that needs no files.
        fake: random images of the right shape, 20 per class for training and 5 for testing, without any file.
        noise: the kind: ``symmetric``, ``asymmetric`` by the data set's ``class_map``, ``pair_flip``, ``instance``, or
            ``none``; ``file`` for labels given by people, which only CIFAR has.
        train_size: use only so many training images, stratified by class and drawn from ``split_seed``; all by default.
        train_eval: whether to evaluate the training images too in each validation.
        eval_batch_size: samples per batch and per process in evaluation; the larger, the faster on small images.

    Raises:
        ValueError: if an argument is out of range; names the argument, what was expected and what was got.
    """

    num_classes: ClassVar[int]
    class_map: ClassVar[Mapping[int, int]]
    """Which class each class is taken for under asymmetric noise; classes that are not named keep their labels."""

    image_shape: ClassVar[tuple[int, int, int]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    padding: ClassVar[int] = 0
    flip: ClassVar[bool] = False

    train_set: ImageDataset
    train_eval_set: ImageDataset
    val_set: ImageDataset
    test_set: ImageDataset

    realised_noise_rate: float
    """Share of the training labels that are wrong; known once the training data have been set up."""

    def __init__(
        self,
        noise_rate: float = 0.4,
        noise_seed: int = 0,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        batch_size: int = 128,
        num_workers: int = 0,
        augment: bool = True,
        data_dir: str | None = None,
        fake: bool = False,
        noise: Noise = "symmetric",
        train_size: int | None = None,
        train_eval: bool = False,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= noise_rate < 1:
            raise ValueError(f"{type(self).__name__}: `noise_rate` must be from 0 to below 1, got {noise_rate!r}.")
        if not 0 < val_fraction < 1:
            raise ValueError(
                f"{type(self).__name__}: `val_fraction` must be above 0 and below 1, got {val_fraction!r}."
            )
        if noise not in get_args(Noise):
            raise ValueError(
                f"{type(self).__name__}: `noise` must be one of {', '.join(get_args(Noise))}, got {noise!r}."
            )
        if noise in MOST and noise_rate > MOST[noise]:
            raise ValueError(
                f"{type(self).__name__}: `noise_rate` must be at most {MOST[noise]} with {noise} noise, got"
                f" {noise_rate!r}. At one half, a class and the one that it is taken for could be swapped."
            )
        if train_size is not None and train_size < self.num_classes:
            raise ValueError(
                f"{type(self).__name__}: `train_size` must be at least {self.num_classes}, one image of each class, got"
                f" {train_size!r}."
            )
        for name, value, low in (
            ("noise_seed", noise_seed, 0),
            ("split_seed", split_seed, 0),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if type(value) is not int or not low <= value <= MAX_SEED:
                raise ValueError(
                    f"{type(self).__name__}: `{name}` must be a whole number from {low} to {MAX_SEED}, got {value!r}."
                )
        self.save_hyperparameters()
        self.noise_rate = noise_rate
        self.noise_seed = noise_seed
        self.split_seed = split_seed
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.data_dir = data_dir
        self.fake = fake
        self.noise = noise
        self.train_size = train_size
        self.train_eval = train_eval
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size

    def download(self) -> None:
        """Fetch the files that are missing; called on one process per node."""

    @abc.abstractmethod
    def read(self, train: bool) -> Images:
        """Return the training or the test images, with true labels."""

    def checked(self, train: bool) -> Images:
        """The training or the test images, once it is known that they are of this data set.

        Raises:
            ValueError: if they cannot be read, or are not what they have to be; says why.
        """
        if self.fake:
            return self._random_images(train)
        where = f"{type(self).__name__}: the {'training' if train else 'test'} images cannot be used"
        try:
            images = self.read(train)
        except MemoryError:
            raise
        except Exception as error:  # whatever a reader makes of a file that is none
            what = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{where}: {what}") from error
        try:
            check_images(images, self.image_shape, self.num_classes)
            fewest = int(images.label.bincount(minlength=self.num_classes).min())
            if train and fewest < 2:
                raise ValueError(f"expected two images or more of each class, got {fewest}.")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return images

    @override
    def prepare_data(self) -> None:
        """Download what is missing. Lightning calls this on one process per node."""
        if not self.fake:
            self.download()

    @override
    def setup(self, stage: str) -> None:
        """Read the images that the stage needs, split them and make the noise."""
        if stage in ("fit", "validate") and not hasattr(self, "train_set"):
            images = self.checked(train=True)
            index, val_index = self._split_index(images.label, self.val_fraction)
            if self.train_size is not None:
                index = self._subset(index, images.label)
            train, val = images.at(index), images.at(val_index)
            noisy = self.noisy_labels(images, index)
            check_images(Images(train.image, noisy), self.image_shape, self.num_classes)
            self.realised_noise_rate = int((noisy != train.label).sum()) / len(noisy)
            rank_zero_info(f"{type(self).__name__}: {self.realised_noise_rate:.2%} of {len(noisy)} labels are wrong.")
            padding, flip = (self.padding, self.flip) if self.augment else (0, False)
            self.train_set = ImageDataset(train, noisy, mean=self.mean, std=self.std, padding=padding, flip=flip)
            self.train_eval_set = ImageDataset(train, noisy, mean=self.mean, std=self.std)
            self.val_set = ImageDataset(val, val.label, mean=self.mean, std=self.std)
        if stage == "test" and not hasattr(self, "test_set"):
            test = self.checked(train=False)
            self.test_set = ImageDataset(test, test.label, mean=self.mean, std=self.std)

    def noisy_labels(self, images: Images, index: Tensor) -> Tensor:
        """The labels to train on.

        Args:
            images: all images of the training file, with true labels.
            index: which of them are trained on.

        Returns:
            Their labels after the noise.

        Raises:
            ValueError: if this data set does not have that noise.
        """
        image, labels = images.at(index)
        rate, seed, classes = self.noise_rate, self.noise_seed, self.num_classes
        match self.noise:
            case "symmetric":
                return symmetric_noise(labels, rate, classes, seed)
            case "asymmetric":
                return asymmetric_noise(labels, rate, self.class_map, classes, seed)
            case "pair_flip":
                return pair_flip_noise(labels, rate, classes, seed)
            case "instance":
                pixels = ImageDataset(Images(image, labels), labels, mean=self.mean, std=self.std)
                features = pixels.__getitems__(list(range(len(labels)))).image.flatten(1)
                return instance_noise(features, labels, rate, classes, seed)
            case "file":
                raise ValueError(f"{type(self).__name__}: there is no file of noisy labels for this data set.")
        return labels.clone()

    def split(self, images: Images, fraction: float) -> tuple[Images, Images]:
        """Two disjoint parts, the second holding ``fraction`` of each class, drawn from ``split_seed``."""
        first, second = self._split_index(images.label, fraction)
        return images.at(first), images.at(second)

    def _split_index(self, label: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        parts = train_test_split(
            torch.arange(len(label)).numpy(), test_size=fraction, stratify=label.numpy(), random_state=self.split_seed
        )
        return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])

    def _subset(self, index: Tensor, label: Tensor) -> Tensor:
        size = self.train_size
        if size is None or size == len(index):
            return index
        if size > len(index) - self.num_classes:  # the rest, too, must hold every class
            raise ValueError(
                f"{type(self).__name__}: `train_size` must be {len(index)}, which is all that the validation split"
                f" leaves, or at most {len(index) - self.num_classes}, got {size}."
            )
        chosen, _ = train_test_split(
            index.numpy(), train_size=size, stratify=label[index].numpy(), random_state=self.split_seed
        )
        return torch.from_numpy(chosen)

    def _random_images(self, train: bool) -> Images:
        n = self.num_classes * (20 if train else 5)
        generator = torch.Generator().manual_seed(int(train))
        image = torch.randint(256, (n, *self.image_shape), generator=generator, dtype=torch.uint8)
        return Images(image, torch.arange(n) % self.num_classes)

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented, noisy batches."""
        return self._loader(self.train_set, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Clean validation batches in a fixed order; with ``train_eval`` also the training batches as they are."""
        val = self._loader(self.val_set, shuffle=False)
        return [val, self._loader(self.train_eval_set, shuffle=False)] if self.train_eval else val

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        """Clean test batches in a fixed order."""
        return self._loader(self.test_set, shuffle=False)

    def _loader(self, dataset: ImageDataset, shuffle: bool) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size if shuffle else self.eval_batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


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


@contextmanager
def explained_download(data: NoisyImageData, remedy: str) -> Iterator[None]:
    """Say of a download that failed which files are missing, where, and how to get them."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{type(data).__name__}: the data set is not in {data.data_dir or 'data'!r} and could not be downloaded"
            f" ({error}). {remedy}"
        ) from error
