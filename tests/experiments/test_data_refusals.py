"""What is read is checked: images and labels that do not belong together, and files that are none."""

import gzip
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_same.experiments import CIFAR10Data, DigitsData, FashionMNISTData, NoisyImageData, symmetric_noise
from lightning_same.experiments.data.fashion_mnist import FashionMNIST
from lightning_same.experiments.images import Images, read_idx


def write_idx(path: Path, values: Any, shape: tuple[int, ...] | None = None) -> None:
    array = np.asarray(values, dtype=np.uint8)
    shape = array.shape if shape is None else shape
    header = bytes([0, 0, 8, len(shape)]) + b"".join(int(n).to_bytes(4, "big") for n in shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def fashion(folder: Path, images: Any, labels: Any, **options: Any) -> NoisyImageData:
    for part in "train", "t10k":
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return FashionMNISTData(data_dir=str(folder), val_fraction=0.5, **options)


WHOLE = np.zeros((40, 28, 28)), np.arange(40) % 10


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (WHOLE[0], np.arange(30) % 10, r"expected 40 labels in int64, one for each image, got \(30,\)"),
        (WHOLE[0], np.arange(50) % 10, r"expected 40 labels in int64, one for each image, got \(50,\)"),
        (WHOLE[0], np.zeros((40, 2)), r"got \(40, 2\) in int64"),
        (WHOLE[0], np.arange(40) % 11, "expected labels from 0 to 9, got 0 to 10"),
        (WHOLE[0], np.full(40, 156), "expected labels from 0 to 9, got 156 to 156"),
        (WHOLE[0], np.arange(40) % 9, "expected two images or more of each class, got 0"),
        (WHOLE[0], np.append(np.arange(39) % 9, 9), "expected two images or more of each class, got 1"),
        (np.zeros((40, 27, 28)), WHOLE[1], r"expected images of \(1, 28, 28\) in uint8, got \(1, 27, 28\)"),
        (np.zeros((40, 3, 28, 28)), WHOLE[1], r"expected images of \(1, 28, 28\) in uint8, got \(1, 3, 28, 28\)"),
        (np.zeros(40), WHOLE[1], r"expected images of \(1, 28, 28\) in uint8, got \(1,\)"),
        (np.zeros((0, 28, 28)), np.zeros(0), "expected one image or more, got none"),
    ],
)
def test_images_and_labels_that_do_not_belong_together_are_refused(
    images: Any, labels: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"FashionMNISTData: the training images cannot be used: .*{message}"):
        fashion(tmp_path, images, labels).setup("fit")


def test_test_images_are_checked_too(tmp_path: Path) -> None:
    data = fashion(tmp_path, *WHOLE)
    data.setup("test")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(40, 10))
    with pytest.raises(ValueError, match="the test images cannot be used: expected labels from 0 to 9, got 10 to 10"):
        fashion_at(tmp_path).setup("test")


def fashion_at(folder: Path) -> NoisyImageData:
    return FashionMNISTData(data_dir=str(folder))


def test_a_reader_of_the_users_own_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigitsData, "read", lambda self, train: Images(torch.zeros(40, 1, 8, 8), torch.arange(40) % 10))
    with pytest.raises(ValueError, match=r"expected images of \(1, 8, 8\) in uint8, got \(1, 8, 8\) in float32"):
        DigitsData().setup("fit")
    monkeypatch.setattr(DigitsData, "read", lambda self, train: {}["images"])
    with pytest.raises(ValueError, match="the training images cannot be used: KeyError: 'images'"):
        DigitsData().setup("fit")


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "expected a whole gzip file: Not a gzipped file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abc")[:-9], "expected a whole gzip file: "),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03abcd"), r"expected 3 bytes for shape \[3\], got more"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "in a shape, got the shape"),
        (gzip.compress(b"\0\0\x08\0abc"), r"in a shape, got the shape \[\]"),
        (gzip.compress(b"\0\0\x08\x02" + b"\xff" * 8), r"got the shape \[4294967295, 4294967295\]"),
    ],
    # A gzip file holds the time, and each process must find the same names.
    ids=["no gzip", "cut", "too long", "no shape", "empty shape", "huge shape"],
)
def test_a_file_that_is_no_whole_idx_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(ValueError, match=f"file.gz: .*{message}"):
        read_idx(tmp_path / "file.gz")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.gz")
    with pytest.raises(ValueError, match=r"file\.gz: expected a file, which it is not"):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("shape", [3, 2**26, 2**30])
def test_a_file_that_unpacks_to_a_thousand_times_its_size_takes_no_memory(shape: int, tmp_path: Path) -> None:
    """64 MiB of zeros in 64 KB; the header says less, as much, or more than is ever read."""
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 1]) + shape.to_bytes(4, "big") + bytes(2**26 + 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.gz: expected "):
            read_idx(tmp_path / "bomb.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (2**20 if shape != 2**26 else 2.5 * shape)


def label_file(path: Path, clean: Tensor, labels: Tensor) -> str:
    torch.save({"clean_label": clean.numpy(), "worse_label": labels.numpy()}, path)
    return str(path)


TRUE = CIFAR10Data(fake=True)._random_images(train=True).label


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (TRUE[:-1], r"expected 200 labels in int64, one for each image, got \(199,\)"),
        (torch.cat([TRUE, TRUE]), r"expected 200 labels in int64, one for each image, got \(400,\)"),
        (torch.full((200,), -100), "expected labels from 0 to 9, got -100 to -100"),
        (TRUE + 1, "expected labels from 0 to 9, got 1 to 10"),
    ],
)
def test_labels_of_people_that_are_not_for_these_images_are_refused(
    labels: Tensor, message: str, tmp_path: Path
) -> None:
    file = label_file(tmp_path / "labels.pt", TRUE, labels)
    with pytest.raises(ValueError, match=f"`label_set`: 'worse_label' in '.*labels.pt' is not for .*{message}"):
        CIFAR10Data(fake=True, noise="file", label_file=file).setup("fit")


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02}q\0.", b"PK\x03\x04"])
def test_a_file_that_holds_no_labels_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"`label_(file|set)`: '.*labels\.pt' (cannot be read|must hold)"):
        CIFAR10Data(fake=True, noise="file", label_file=str(tmp_path / "labels.pt")).setup("fit")


def test_a_cut_file_of_labels_is_named(tmp_path: Path) -> None:
    path = Path(label_file(tmp_path / "labels.pt", TRUE, TRUE))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"`label_file`: '.*labels\.pt' cannot be read"):
        CIFAR10Data(fake=True, noise="file", label_file=str(path)).setup("fit")


# Noise and options


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int64])
def test_noise_on_small_types_is_that_on_large_ones(dtype: torch.dtype) -> None:
    """99 + 99 overflows int8: labels kept their class, and the others were not uniform."""
    labels = torch.arange(100).repeat(20)
    noisy = symmetric_noise(labels.to(dtype), 1.0, 100, seed=0)
    assert noisy.dtype == dtype
    assert torch.equal(noisy.long(), symmetric_noise(labels, 1.0, 100, seed=0))
    assert not (noisy.long() == labels).any()
    assert ((noisy >= 0) & (noisy < 100)).all()


def test_fashion_mnist_comes_by_https_first() -> None:
    assert FashionMNIST.mirrors[0].startswith("https://")
    assert FashionMNIST.__name__ == "FashionMNIST"
    assert FashionMNIST.resources[0][1] == "8d4fb7e6c68d591d4c3dfef9ec88bf0d"


@pytest.mark.parametrize("name", ["batch_size", "num_workers", "noise_seed", "split_seed"])
@pytest.mark.parametrize("value", [-1, 2**32, True, 1.5])
def test_whole_numbers_are_checked_before_the_fit(name: str, value: Any) -> None:
    largest = 1024 if name == "num_workers" else 2**32 - 1
    with pytest.raises(ValueError, match=f"DigitsData: `{name}` must be a whole number from [01] to {largest}, got "):
        DigitsData(**{name: value})
