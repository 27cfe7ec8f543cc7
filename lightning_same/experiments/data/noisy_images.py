"""What all data sets have in common: splits, label noise, and loaders."""

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_same.experiments.images import Batch, ImageDataset, Images, as_is, check_images
from lightning_same.experiments.noise import asymmetric_noise, instance_noise, pair_flip_noise, symmetric_noise

MAX_SEED = 2**32 - 1
"""numpy's seeds, by which the splits are drawn, go as far."""

MAX_WORKERS = 1024
"""More processes than any machine has cores for."""

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
        for name, value, low, high in (
            ("noise_seed", noise_seed, 0, MAX_SEED),
            ("split_seed", split_seed, 0, MAX_SEED),
            ("batch_size", batch_size, 1, MAX_SEED),
            ("eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1, MAX_SEED),
            ("num_workers", num_workers, 0, MAX_WORKERS),
        ):
            if type(value) is not int or not low <= value <= high:
                raise ValueError(
                    f"{type(self).__name__}: `{name}` must be a whole number from {low} to {high}, got {value!r}."
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
