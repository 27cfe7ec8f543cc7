"""Label noise of every kind, by itself and in the data."""

import itertools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_same.experiments import (
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
from lightning_same.experiments.images import Images


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


def test_the_order_in_which_a_map_is_written_does_not_matter() -> None:
    """A map that is read from a file may come in any."""
    true = torch.arange(5).repeat(40)
    class_map = {0: 3, 3: 1, 1: 2, 4: 0}
    noisy = asymmetric_noise(true, 0.3, class_map, 5, seed=0)
    for order in itertools.permutations(class_map):
        assert torch.equal(asymmetric_noise(true, 0.3, {c: class_map[c] for c in order}, 5, seed=0), noisy)


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
    pixels = torch.randint(256, (200, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    true = Images(pixels, torch.arange(200) % 10)

    class InOrder(CIFAR10Data):
        def read(self, train: bool) -> Images:
            return true

    worse = (true.label + torch.arange(200) // 100) % 10  # the second half is wrong
    file = human_file(tmp_path / "CIFAR-10_human.pt", true.label, worse_label=worse, aggre_label=true.label)
    data = InOrder(noise="file", label_file=file)
    data.setup("fit")
    where = {tuple(image.flatten().tolist()): i for i, image in enumerate(true.image)}
    index = torch.tensor([where[tuple(image.flatten().tolist())] for image in data.train_set.images.image])
    assert torch.equal(data.train_set.label, worse[index])
    assert data.realised_noise_rate == pytest.approx(float((index >= 100).float().mean()))
    with pytest.raises(ValueError, match=r"`label_set`: .* must hold 'clean_label' and 'noisy_label', it holds \["):
        human_labels(file, "noisy_label", true.label)
    with pytest.raises(ValueError, match="belongs to other images"):
        human_labels(file, "worse_label", true.label.flip(0))
    with pytest.raises(ValueError, match=r"there is no file 'nowhere.pt'.* http://noisylabels.com"):
        human_labels("nowhere.pt", "worse_label", true.label)


def test_each_cifar_reads_the_labels_of_its_own_file_by_default(tmp_path: Path) -> None:
    """They have other names in the authors' two files."""
    for kind, name in (CIFAR10Data, "worse_label"), (CIFAR100Data, "noisy_label"):
        true = kind(fake=True)._random_images(train=True).label
        file = human_file(tmp_path / f"{name}.pt", true, **{name: (true + 1) % kind.num_classes})
        data = kind(fake=True, noise="file", label_file=file)
        data.setup("fit")
        assert data.realised_noise_rate == 1


def test_a_file_of_labels_that_would_unpack_to_a_huge_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_same.experiments.data.cifar.MAX_LABEL_FILE", 1000)
    true = CIFAR10Data(fake=True)._random_images(train=True).label
    file = human_file(tmp_path / "huge.pt", true, worse_label=true)
    with pytest.raises(ValueError, match=r"`label_file`: '.*huge.pt' cannot be read: it would take \d+ bytes unpacked"):
        CIFAR10Data(fake=True, noise="file", label_file=file).setup("fit")


def test_a_file_of_numpy_1_is_read_as_the_authors_wrote_it(tmp_path: Path) -> None:
    """numpy 1 called its module `numpy.core`; all else in the file is the same."""
    true = torch.arange(30) % 10
    written = human_file(tmp_path / "now.pt", true, worse_label=(true + 1) % 10)
    changed = 0
    with zipfile.ZipFile(written) as now, zipfile.ZipFile(tmp_path / "then.pt", "w") as then:
        for item in now.infolist():
            content = now.read(item)
            for module in b"numpy._core.multiarray", b"numpy.core.multiarray":
                changed += content.count(module)
                content = content.replace(module, b"numpy.core.multiarray")
            then.writestr(item.filename, content)
    assert changed
    assert torch.equal(human_labels(tmp_path / "then.pt", "worse_label", true), (true + 1) % 10)


def test_noise_that_could_swap_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`noise_rate` must be at most 0.4 with asymmetric noise, got 0.5"):
        DigitsData(noise="asymmetric", noise_rate=0.5)
    with pytest.raises(ValueError, match=r"`noise_rate` must be at most 0.45 with pair_flip noise, got 0.5"):
        DigitsData(noise="pair_flip", noise_rate=0.5)
    assert DigitsData(noise="symmetric", noise_rate=0.5).noise_rate == 0.5


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


def test_a_file_of_labels_and_its_option_go_together() -> None:
    for option in {"noise": "file"}, {"label_file": "x.pt"}:
        with pytest.raises(ValueError, match='`noise="file"` and `label_file` go together'):
            CIFAR10Data(**option)  # type: ignore[arg-type]
    data = DigitsData(noise="file")
    with pytest.raises(ValueError, match="DigitsData: there is no file of noisy labels"):
        data.setup("fit")
