"""Images held as tensors, read a whole batch at a time."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from typing_extensions import override


class Batch(NamedTuple):
    """A batch of n samples; a sample is noisy where ``label != true_label``."""

    image: Tensor
    """Standardised images, float32 of shape (n, channels, height, width)."""
    label: Tensor
    """The labels to train or to be judged on, int64 of shape (n,)."""
    true_label: Tensor
    """The labels before the noise, int64 of shape (n,)."""

    @property
    def noisy(self) -> Tensor:
        """Which labels are wrong, bool of shape (n,)."""
        return self.label != self.true_label


class Images(NamedTuple):
    """Images as they are stored, and their true labels."""

    image: Tensor
    """uint8 of shape (n, channels, height, width)."""
    label: Tensor
    """int64 of shape (n,)."""

    def at(self, index: Tensor) -> "Images":
        """The images of these indices."""
        return Images(self.image[index], self.label[index])


class ImageDataset(Dataset[Batch]):
    """Tensors of images, read, augmented and standardised a whole batch at a time.

    Args:
        images: the images and their true labels.
        label: the labels to train on, of shape (n,).
        mean: mean of each channel of the images divided by 255.
        std: standard deviation likewise.
        padding: pixels of black around an image before a random crop to its size; 0 is no crop.
        flip: whether to mirror each image left to right with probability one half.
    """

    def __init__(
        self,
        images: Images,
        label: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        padding: int = 0,
        flip: bool = False,
    ) -> None:
        self.images = images
        self.label = label
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.padding = padding
        self.flip = flip

    def __len__(self) -> int:
        return len(self.label)

    @override
    def __getitem__(self, index: int) -> Batch:
        """One sample, without the batch dimension."""
        return Batch(*(field[0] for field in self.__getitems__([index])))

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return a batch; PyTorch's loader calls this instead of collecting single samples."""
        index = torch.tensor(indices)
        image = self.images.image[index]
        if self.padding:
            image = random_crop(image, self.padding)
        if self.flip:
            image = random_flip(image)
        return Batch((image / 255 - self.mean) / self.std, self.label[index], self.images.label[index])


def random_crop(image: Tensor, padding: int) -> Tensor:
    """Shift each image (n, channels, height, width) by up to ``padding`` pixels each way, filling with zeros.

    Draws from the global random state, which is the worker's own in a worker process.
    """
    n, channels, height, width = image.shape
    padded = F.pad(image, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2, n, 1))
    row = (top + torch.arange(height)).view(n, 1, height, 1)
    column = (left + torch.arange(width)).view(n, 1, 1, width)
    return padded[torch.arange(n).view(n, 1, 1, 1), torch.arange(channels).view(1, channels, 1, 1), row, column]


def random_flip(image: Tensor) -> Tensor:
    """Mirror each image (n, channels, height, width) left to right with probability one half."""
    return torch.where(torch.rand(len(image), 1, 1, 1) < 0.5, image.flip(-1), image)


def as_is(batch: Any) -> Any:
    """Collate nothing: the dataset gives whole batches. A named function, since workers must be able to pickle it."""
    return batch


MAX_BYTES = 2**28
"""What a file of images may hold when it is unpacked: five times as much as that of Fashion-MNIST."""


def read_idx(path: Path) -> Tensor:
    """Read a gzipped IDX file of bytes, the format of MNIST and its successors.

    torchvision's reader takes unpacked files only. No more is unpacked than the shape says, nor more than `MAX_BYTES`.

    Returns:
        A uint8 tensor of the shape that the file states.

    Raises:
        ValueError: if the file is no IDX file of bytes, or not as long as its shape says.
    """
    if path.exists() and not path.is_file():  # a pipe has no end
        raise ValueError(f"{path}: expected a file, which it is not.")
    try:
        with gzip.open(path) as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08":
                raise ValueError(
                    f"{path}: expected an IDX file of bytes, which starts with 00 00 08, got {start[:3].hex(' ')}."
                )
            header = file.read(4 * start[3])
            shape = [int.from_bytes(header[i : i + 4], "big") for i in range(0, 4 * start[3], 4)]
            expected = math.prod(shape)
            if len(header) < 4 * start[3] or not shape or expected > MAX_BYTES:
                raise ValueError(f"{path}: expected 1 to {MAX_BYTES} bytes in a shape, got the shape {shape}.")
            content = bytearray(file.read(expected + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: expected a whole gzip file: {error}.") from error
    if len(content) != expected:
        got = "more" if len(content) > expected else len(content)
        raise ValueError(f"{path}: expected {expected} bytes for shape {shape}, got {got}.")
    data = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return data.reshape(shape)


def check_images(images: "Images", shape: tuple[int, ...], num_classes: int) -> None:
    """Refuse images and labels that do not belong together or to this data set.

    Args:
        images: as they were read.
        shape: of one image.
        num_classes: number of classes.

    Raises:
        ValueError: says what was expected and what was got.
    """
    image, label = images
    if image.dtype != torch.uint8 or tuple(image.shape[1:]) != shape:
        raise ValueError(
            f"expected images of {shape} in uint8, got {tuple(image.shape[1:])} in {str(image.dtype).split('.')[-1]}."
        )
    if label.ndim != 1 or label.dtype != torch.int64 or len(label) != len(image):
        kind = str(label.dtype).split(".")[-1]
        raise ValueError(
            f"expected {len(image)} labels in int64, one for each image, got {tuple(label.shape)} in {kind}."
        )
    if len(label) == 0:
        raise ValueError("expected one image or more, got none.")
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"expected labels from 0 to {num_classes - 1}, got {low} to {high}.")
