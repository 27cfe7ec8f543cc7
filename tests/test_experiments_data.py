"""The data of the experiments and its noise."""

import gzip
import struct
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_same.experiments import (
    Batch,
    CIFAR10Data,
    CIFAR100Data,
    DigitsData,
    FashionMNISTData,
    NoisyImageData,
    symmetric_noise,
)
from lightning_same.experiments.images import random_crop, random_flip, read_idx


def epoch(batches: Any) -> Batch:
    """All batches of a loader as one."""
    return Batch(*(torch.cat(field) for field in zip(*batches, strict=True)))


def distinct(images: Tensor) -> int:
    """How many different images there are."""
    return len({tuple(image) for image in images.flatten(1).tolist()})


# Noise


@settings(deadline=None, max_examples=60)
@given(
    labels=st.integers(2, 12).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), max_size=60))),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_noise_replaces_exactly_the_rate(labels: tuple[int, list[int]], rate: float, seed: int) -> None:
    num_classes, given_labels = labels
    true = torch.tensor(given_labels, dtype=torch.int64)
    before, state = true.clone(), torch.get_rng_state()
    noisy = symmetric_noise(true, rate, num_classes, seed)
    assert int((noisy != true).sum()) == round(rate * len(true))
    assert noisy.dtype == true.dtype
    assert ((noisy >= 0) & (noisy < num_classes)).all()
    assert torch.equal(true, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_uniform_over_the_other_classes() -> None:
    noisy = symmetric_noise(torch.full((30_000,), 2), 1.0, 4, seed=0)
    shares = noisy.bincount(minlength=4) / len(noisy)
    # The standard deviation of a share of 1/3 of 30,000 draws is 0.0027.
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]), atol=0.014, rtol=0)


def test_noise_depends_on_its_own_seed_alone() -> None:
    labels = torch.arange(100) % 10
    torch.manual_seed(1)
    first = symmetric_noise(labels, 0.4, 10, seed=7)
    torch.manual_seed(2)
    assert torch.equal(symmetric_noise(labels, 0.4, 10, seed=7), first)
    assert not torch.equal(symmetric_noise(labels, 0.4, 10, seed=8), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4), 0.4, 10), r"`labels` must be integers of shape \(n,\), got torch.float32 of shape \(4,\)"),
        ((torch.zeros(4, 2, dtype=torch.int64), 0.4, 10), r"`labels` must be .* of shape \(4, 2\)"),
        ((torch.arange(4), -0.1, 10), "`rate` must be from 0 to 1, got -0.1"),
        ((torch.arange(4), float("nan"), 10), "`rate` must be from 0 to 1, got nan"),
        ((torch.arange(4), 0.4, 1), "`num_classes` must be at least 2, got 1"),
        ((torch.arange(4), 0.4, 3), "`labels` must be from 0 to num_classes - 1 = 2, got 0 to 3"),
    ],
)
def test_noise_names_what_is_out_of_range(arguments: tuple[Tensor, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        symmetric_noise(*arguments, seed=0)


# Data


def test_splits_are_disjoint_stratified_and_noisy_in_training_only() -> None:
    data = DigitsData(noise_rate=0.3, val_fraction=0.2)
    data.setup("fit")
    data.setup("test")
    sets = data.train_set, data.val_set, data.test_set
    assert [len(s) for s in sets] == [1149, 288, 360]
    # 1797 digits, no two alike: what is counted twice would be in two splits.
    everything = torch.cat([s.images.image for s in sets])
    assert distinct(everything) == 1797
    shares = torch.stack([s.images.label.bincount() / len(s) for s in sets])
    assert (shares - shares[0]).abs().max() < 0.004
    assert int((data.train_set.label != data.train_set.images.label).sum()) == round(0.3 * 1149)
    assert torch.equal(data.val_set.label, data.val_set.images.label)
    assert torch.equal(data.test_set.label, data.test_set.images.label)


def test_splits_and_noise_ignore_the_global_seed_and_follow_their_own() -> None:
    def made(**seeds: Any) -> tuple[Tensor, Tensor]:
        data = DigitsData(**seeds)
        data.setup("fit")
        return data.train_set.images.image, data.train_set.label

    pl.seed_everything(1, verbose=False)
    images, labels = made()
    pl.seed_everything(2, verbose=False)
    state = torch.get_rng_state()
    assert all(map(torch.equal, made(), (images, labels)))
    assert torch.equal(torch.get_rng_state(), state)
    other_images, other_labels = made(noise_seed=1)
    assert torch.equal(other_images, images)
    assert not torch.equal(other_labels, labels)
    assert not torch.equal(made(split_seed=1)[0], images)


@pytest.mark.parametrize("kind", [DigitsData, FashionMNISTData, CIFAR10Data, CIFAR100Data])
def test_fake_batches_have_the_shape_of_the_real(kind: type[NoisyImageData]) -> None:
    data = kind(fake=True, batch_size=16)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    for loader in data.train_dataloader(), data.val_dataloader(), data.test_dataloader():
        batch = next(iter(loader))
        assert isinstance(batch, Batch)
        n = min(16, len(loader.dataset))  # type: ignore[arg-type]
        assert batch.image.shape == (n, *kind.image_shape)
        assert batch.image.dtype == torch.float32
        assert batch.label.shape == batch.true_label.shape == (n,)
        assert batch.label.dtype == batch.true_label.dtype == torch.int64
    assert set(data.train_set.images.label.tolist()) == set(range(kind.num_classes))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_holds_every_sample_once(num_workers: int) -> None:
    data = DigitsData(augment=False, num_workers=num_workers)
    data.setup("fit")
    seen = epoch(data.train_dataloader())
    stored = data.train_set[0].image
    assert len(seen.image) == len(data.train_set)
    assert distinct(seen.image) == len(data.train_set)
    assert int((seen.image == stored).flatten(1).all(1).sum()) == 1
    assert torch.equal(seen.label.bincount(), data.train_set.label.bincount())


def test_the_constants_standardise_the_digits() -> None:
    data = DigitsData(augment=False)
    data.setup("fit")
    image = epoch(data.train_dataloader()).image
    assert abs(image.mean()) < 0.01
    assert abs(image.std() - 1) < 0.01


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
    source = "lightning_same.experiments.data.FashionMNIST"
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


@pytest.mark.parametrize(
    "option", [{"noise_rate": 1.5}, {"noise_rate": 1.0}, {"val_fraction": 0.0}, {"val_fraction": 1.0}]
)
def test_data_names_what_is_out_of_range(option: dict[str, float]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"DigitsData: `{name}` must be .*, got {value}"):
        DigitsData(**option)  # type: ignore[arg-type]
