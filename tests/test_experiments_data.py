"""The data of the experiments and its noise."""

import gzip
import struct
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
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
    asymmetric_noise,
    human_labels,
    instance_noise,
    pair_flip_noise,
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


def shares(true: Tensor, noisy: Tensor, num_classes: int) -> Any:
    """The share of each true class (row) that has each label (column), counted in numpy."""
    count = np.zeros((num_classes, num_classes))
    np.add.at(count, (true.numpy(), noisy.numpy()), 1)
    return count / count.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", [FashionMNISTData, DigitsData, CIFAR10Data, CIFAR100Data])
def test_asymmetric_noise_moves_mapped_classes_alone(kind: type[NoisyImageData]) -> None:
    k = kind.num_classes
    true = torch.arange(k).repeat(50)
    noisy = asymmetric_noise(true, 0.3, kind.class_map, k, seed=0)
    expected = np.eye(k)
    for source, target in kind.class_map.items():
        expected[source, source], expected[source, target] = 0.7, 0.3
    np.testing.assert_allclose(shares(true, noisy, k), expected)


def test_the_class_maps_are_the_usual_ones() -> None:
    cifar10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    named = {cifar10[a]: cifar10[b] for a, b in CIFAR10Data.class_map.items()}
    assert named == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    clothes = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
    named = {clothes[a]: clothes[b] for a, b in FashionMNISTData.class_map.items()}
    assert named == {"boot": "sneaker", "sneaker": "sandal", "pullover": "shirt", "coat": "dress", "dress": "coat"}


def test_cifar100_flips_around_each_superclass() -> None:
    step = CIFAR100Data.class_map
    assert sorted(step) == sorted(step.values()) == list(range(100))
    ring = [0]
    while (following := step[ring[-1]]) != 0:
        ring.append(following)
    # apple, mushroom, orange, pear, sweet pepper: fruit and vegetables.
    assert ring == [0, 51, 53, 57, 83]
    # maple, oak, palm, pine, willow: trees.
    assert [step[c] for c in (47, 52, 56, 59, 96)] == [52, 56, 59, 96, 47]


def test_pair_flip_moves_each_class_to_the_next() -> None:
    true = torch.arange(4).repeat(100)
    expected = 0.55 * np.eye(4) + 0.45 * np.roll(np.eye(4), 1, axis=1)
    np.testing.assert_allclose(shares(true, pair_flip_noise(true, 0.45, 4, seed=3), 4), expected)


def test_instance_noise_follows_the_formula() -> None:
    n, d, k = 4000, 8, 5
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(5))
    true = torch.arange(n) % k
    noisy = instance_noise(features, true, 0.4, k, seed=1)
    wrong = noisy != true
    assert abs(float(wrong.float().mean()) - 0.4) < 0.03  # standard deviation 0.008
    # Among the samples of one class, the wrong label is the class of the largest projection far more often than by
    # chance (1/4), and a second sample of equal features is mistaken for the same classes.
    generator = torch.Generator().manual_seed(1)
    torch.nn.init.trunc_normal_(torch.empty(n), 0.4, 0.1, 0.0, 1.0, generator=generator)
    weight = torch.randn(d, k, generator=generator)  # of class 0, which is drawn first
    members = wrong & (true == 0)
    logits = (features[members].double() @ weight.double()).numpy()
    logits[:, 0] = -np.inf
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    hit = (logits.argmax(1) == noisy[members].numpy()).mean()
    assert abs(hit - chance.max(1).mean()) < 0.07
    assert hit > 0.5


@pytest.mark.parametrize(
    "noise",
    [
        lambda labels, rate, seed: asymmetric_noise(labels, rate, {0: 1, 2: 0}, 10, seed),
        lambda labels, rate, seed: pair_flip_noise(labels, rate, 10, seed),
        lambda labels, rate, seed: instance_noise(torch.ones(len(labels), 3), labels, rate, 10, seed),
    ],
)
def test_every_noise_has_its_own_seed_and_leaves_its_input(noise: Any) -> None:
    labels = torch.arange(200) % 10
    before, state = labels.clone(), torch.get_rng_state()
    first = noise(labels, 0.4, 7)
    assert torch.equal(labels, before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(noise(labels, 0.4, 7), first)
    assert not torch.equal(noise(labels, 0.4, 8), first)
    assert torch.equal(noise(labels, 0.0, 7), labels)
    with pytest.raises(ValueError, match=r"`rate` must be from 0 to 1, got 1\.1"):
        noise(labels, 1.1, 7)


def test_a_class_map_that_leads_nowhere_is_refused() -> None:
    for wrong in {1: 1}, {0: 10}, {-1: 3}:
        with pytest.raises(ValueError, match="`class_map` must lead from a class below 10 to another one, got "):
            asymmetric_noise(torch.arange(10), 0.4, wrong, 10, seed=0)


def human_file(path: Path, true: Tensor, **labels: Tensor) -> str:
    torch.save({"clean_label": true.numpy(), **{name: label.numpy() for name, label in labels.items()}}, path)
    return str(path)


def test_labels_of_people_are_read_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = CIFAR10Data(fake=True)._random_images(train=True)
    worse = (fake.label + torch.arange(200) // 100) % 10  # the second half is wrong
    file = human_file(tmp_path / "CIFAR-10_human.pt", fake.label, worse_label=worse, aggre_label=fake.label)
    data = CIFAR10Data(fake=True, noise="file", label_file=file)
    data.setup("fit")
    where = {tuple(image.flatten().tolist()): i for i, image in enumerate(fake.image)}
    index = torch.tensor([where[tuple(image.flatten().tolist())] for image in data.train_set.images.image])
    assert torch.equal(data.train_set.label, worse[index])
    assert data.realised_noise_rate == pytest.approx(float((index >= 100).float().mean()))
    with pytest.raises(ValueError, match=r"`label_set`: .* must hold 'clean_label' and 'noisy_label', it holds \["):
        human_labels(file, "noisy_label", fake.label)
    with pytest.raises(ValueError, match="belongs to other images"):
        human_labels(file, "worse_label", fake.label.flip(0))
    with pytest.raises(ValueError, match=r"there is no file 'nowhere.pt'.* http://noisylabels.com"):
        human_labels("nowhere.pt", "worse_label", fake.label)


def test_a_file_of_labels_runs_no_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "harm").touch, ())

    torch.save({"clean_label": Harmful()}, tmp_path / "file.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        human_labels(tmp_path / "file.pt", "worse_label", torch.arange(3))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("noise", ["none", "symmetric", "asymmetric", "pair_flip", "instance"])
def test_the_realised_rate_is_that_of_the_labels(noise: Any) -> None:
    data = DigitsData(noise=noise, noise_rate=0.4)
    data.setup("fit")
    wrong = int((data.train_set.label != data.train_set.images.label).sum())
    assert data.realised_noise_rate == pytest.approx(wrong / len(data.train_set))
    expected = {"none": 0.0, "asymmetric": 0.2}.get(noise, 0.4)
    assert abs(data.realised_noise_rate - expected) < 0.04


def test_a_subset_is_stratified_and_leaves_the_validation_split() -> None:
    def made(size: int | None) -> NoisyImageData:
        data = DigitsData(train_size=size, val_fraction=0.2)
        data.setup("fit")
        return data

    small, whole = made(300), made(None)
    assert len(small.train_set) == 300
    assert torch.equal(small.val_set.images.image, whole.val_set.images.image)
    share = small.train_set.images.label.bincount() / 300
    assert (share - whole.train_set.images.label.bincount() / len(whole.train_set)).abs().max() < 0.005
    rows = {tuple(image) for image in whole.train_set.images.image.flatten(1).tolist()}
    assert all(tuple(image) in rows for image in small.train_set.images.image.flatten(1).tolist())
    assert len(made(len(whole.train_set)).train_set) == len(whole.train_set)
    with pytest.raises(ValueError, match=r"`train_size` must be 1149, .* or at most 1139, got 1145"):
        made(1145)


def test_training_images_are_evaluated_as_they_are() -> None:
    data = DigitsData(train_eval=True, augment=True)
    data.setup("fit")
    val, train = data.val_dataloader()
    assert torch.equal(epoch(val).label, data.val_set.label)
    seen = epoch(train)
    assert torch.equal(seen.label, data.train_set.label)
    assert torch.equal(seen.noisy, seen.label != data.train_set.images.label)
    torch.testing.assert_close(seen.image, (data.train_set.images.image / 255 - 0.305) / 0.376)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"noise": "symetric"}, "`noise` must be one of none, symmetric, .*, got 'symetric'"),
        ({"train_size": 3}, "`train_size` must be at least 10, one image of each class, got 3"),
    ],
)
def test_options_that_mean_nothing_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsData(**option)


def test_a_file_of_labels_and_its_option_go_together() -> None:
    for option in {"noise": "file"}, {"label_file": "x.pt"}:
        with pytest.raises(ValueError, match='`noise="file"` and `label_file` go together'):
            CIFAR10Data(**option)  # type: ignore[arg-type]
    data = DigitsData(noise="file")
    with pytest.raises(ValueError, match="DigitsData: there is no file of noisy labels"):
        data.setup("fit")


@pytest.mark.parametrize("kind", [CIFAR10Data, FashionMNISTData])
def test_a_failed_download_says_how_to_get_the_files(
    kind: type[NoisyImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(kind, "source", staticmethod(offline), raising=False)
    monkeypatch.setattr("lightning_same.experiments.data.FashionMNIST", offline)
    with pytest.raises(
        RuntimeError, match=r"the data set is not in '.*' and could not be downloaded \(no route .* there"
    ):
        kind(data_dir=str(tmp_path)).prepare_data()


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
