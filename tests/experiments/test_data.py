"""The data modules of the experiments: splits, subsets, batches."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from lightning_same.experiments import Batch, CIFAR10Data, CIFAR100Data, DigitsData, FashionMNISTData, NoisyImageData


def epoch(batches: Any) -> Batch:
    """All batches of a loader as one."""
    return Batch(*(torch.cat(field) for field in zip(*batches, strict=True)))


def distinct(images: Tensor) -> int:
    """How many different images there are."""
    return len({tuple(image) for image in images.flatten(1).tolist()})


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


@pytest.mark.parametrize("seed", [0, 1])
def test_a_subset_is_drawn_by_the_seed_of_the_splits(seed: int) -> None:
    """Against scikit-learn's own splits, one of the other."""
    data = DigitsData(train_size=300, split_seed=seed, noise="none")
    data.setup("fit")
    images, label = data.read(train=True)
    index, _ = train_test_split(range(len(label)), test_size=0.1, stratify=label, random_state=seed)
    chosen, _ = train_test_split(index, train_size=300, stratify=label[index], random_state=seed)
    assert torch.equal(data.train_set.images.image, images[chosen])


@pytest.mark.parametrize(
    ("kind", "most", "flips"),
    [(DigitsData, 1, {False}), (FashionMNISTData, 2, {False, True}), (CIFAR10Data, 4, {False, True})],
)
def test_training_images_are_shifted_and_mirrored_as_far_as_is_said(
    kind: type[NoisyImageData], most: int, flips: set[bool]
) -> None:
    """One image a hundred times: every shift in either direction is missed by chance once in 10,000 times."""
    data = kind(fake=True)
    data.setup("fit")
    image = data.train_set.images.image[0]
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (kind.mean, kind.std))
    torch.manual_seed(0)
    seen = (255 * (data.train_set.__getitems__([0] * 100).image * std + mean)).round().to(torch.uint8)
    room, (_, height, width) = most + 1, kind.image_shape
    padded = nn.functional.pad(image, [room] * 4)
    shifts = range(2 * room + 1)
    windows = {(i - room, j - room): padded[:, i : i + height, j : j + width] for i in shifts for j in shifts}
    found = [
        (shift, mirrored)
        for each in seen
        for shift, window in windows.items()
        for mirrored in (False, True)
        if torch.equal(each, window.flip(-1) if mirrored else window)
    ]
    assert len(found) == len(seen)
    assert {i for (i, _), _ in found} == {j for (_, j), _ in found} == set(range(-most, most + 1))
    assert {mirrored for _, mirrored in found} == flips


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


@pytest.mark.parametrize(("asked", "size"), [(None, 16), (7, 7)])
def test_evaluation_may_have_a_batch_size_of_its_own(asked: int | None, size: int) -> None:
    data = DigitsData(fake=True, batch_size=16, eval_batch_size=asked, train_eval=True)
    for stage in "fit", "test":
        data.setup(stage)
    assert len(next(iter(data.train_dataloader())).label) == 16
    for loader in (*data.val_dataloader(), data.test_dataloader()):
        assert len(next(iter(loader)).label) == size


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


@pytest.mark.parametrize(
    "option", [{"noise_rate": 1.5}, {"noise_rate": 1.0}, {"val_fraction": 0.0}, {"val_fraction": 1.0}]
)
def test_data_names_what_is_out_of_range(option: dict[str, float]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"DigitsData: `{name}` must be .*, got {value}"):
        DigitsData(**option)  # type: ignore[arg-type]
