"""Crops, flips, and the files that images come from."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_same.experiments import CIFAR10Data, FashionMNISTData, NoisyImageData
from lightning_same.experiments.images import random_crop, random_flip, read_idx


@pytest.mark.parametrize("kind", [CIFAR10Data, FashionMNISTData])
def test_a_failed_download_says_how_to_get_the_files(
    kind: type[NoisyImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(kind, "source", staticmethod(offline), raising=False)
    monkeypatch.setattr("lightning_same.experiments.data.fashion_mnist.FashionMNIST", offline)
    with pytest.raises(
        RuntimeError, match=r"the data set is not in '.*' and could not be downloaded \(no route .* there"
    ):
        kind(data_dir=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_shifts_each_image_by_itself(padding: int) -> None:
    image = torch.arange(1, 33, dtype=torch.uint8).view(1, 2, 4, 4).expand(64, -1, -1, -1)
    cropped = random_crop(image, padding)
    padded = nn.functional.pad(image[0], [padding] * 4)
    windows = padded.unfold(1, 4, 1).unfold(2, 4, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    found = (cropped[:, None] == windows[None]).flatten(2).all(2)
    assert found.any(1).all()
    assert found.any(0).sum() > 5


def test_flip_mirrors_about_half_of_the_images() -> None:
    image = torch.arange(12).view(1, 1, 3, 4).expand(400, -1, -1, -1)
    flipped = random_flip(image)
    mirrored = (flipped == image.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == image).flatten(1).all(1)).all()
    assert 140 < int(mirrored.sum()) < 260  # six standard deviations


def write_idx(path: Path, values: Tensor) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + bytes(values.flatten().tolist())))


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    for part, n in ("train", 40), ("t10k", 20):
        image = torch.arange(n, dtype=torch.uint8).view(n, 1, 1).expand(n, 28, 28).contiguous()
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", image)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", torch.arange(n) % 10)
    return tmp_path


@pytest.mark.parametrize("found_by", ["data_dir", "Debian's folder"])
def test_fashion_mnist_is_read_where_it_lies(idx_folder: Path, found_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if found_by == "data_dir":
        data = FashionMNISTData(data_dir=str(idx_folder), val_fraction=0.5)
    else:
        monkeypatch.setattr(FashionMNISTData, "DEBIAN", idx_folder)
        data = FashionMNISTData(val_fraction=0.5)
    data.prepare_data()
    for stage in "fit", "test":
        data.setup(stage)
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [20, 20, 20]
    for images in data.train_set.images, data.val_set.images, data.test_set.images:
        assert images.image.shape == (20, 1, 28, 28)
        assert torch.equal(images.image[:, 0, 27, 3] % 10, images.label)


def test_missing_fashion_mnist_is_downloaded_to_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    source = "lightning_same.experiments.data.fashion_mnist.FashionMNIST"
    monkeypatch.setattr(source, lambda root, download: asked.append((root, download)))
    FashionMNISTData(data_dir=str(tmp_path)).prepare_data()
    assert asked == [(str(tmp_path), True)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file of bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "expected an IDX file of bytes, .* got 00 00 0d"),
        (b"\0\0\x08\x01\0\0\0\x03\x01\x02", r"expected 3 bytes for shape \[3\], got 2"),
    ],
)
def test_a_broken_idx_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "broken.gz")
