"""Label noise: wrong labels that depend on their own seed and on nothing else.

Every function leaves its input as it is, returns labels with the shape, type and device of those given, and neither
reads nor moves the global random state: equal arguments give equal noise on every rank and under every global seed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def symmetric_noise(labels: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """Replace a share of the labels, each by another class drawn uniformly.

    The samples are drawn without replacement and a label never keeps its class, so ``rate`` is the exact share of wrong
    labels. Some papers draw the new label from all classes instead; their rate r is (1 - 1 / num_classes) r here.

    Args:
        labels: integer classes from 0 to ``num_classes - 1``, of shape (n,).
        rate: share of labels to replace, from 0 to 1; ``round(rate * n)`` are replaced.
        num_classes: number of classes, at least 2.
        seed: seed of the noise.

    Returns:
        The noisy labels.

    Raises:
        ValueError: if an argument is out of range; names the argument, what was expected and what was got.
    """
    _check(labels, rate, num_classes)
    # On the CPU whatever the device of the labels is: generators of different devices draw different numbers.
    generator = torch.Generator().manual_seed(seed)
    count = round(rate * len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[:count].to(labels.device)
    # A step of 1 to num_classes - 1 around the ring of classes reaches every other class, and never the same one.
    step = torch.randint(1, num_classes, (count,), generator=generator).to(labels.device)
    noisy = labels.clone()
    # In int64: a small type would overflow, as int8 does from 64 classes on.
    noisy[chosen] = ((labels[chosen].long() + step) % num_classes).to(labels.dtype)
    return noisy


def asymmetric_noise(labels: Tensor, rate: float, class_map: Mapping[int, int], num_classes: int, seed: int) -> Tensor:
    """Replace a share of the labels of some classes, each by the class that it is taken for.

    Args:
        labels: integer classes from 0 to ``num_classes - 1``, of shape (n,).
        rate: share of each mapped class to replace, from 0 to 1: ``round(rate * n_c)`` of its n_c samples. Where not
            every class is mapped, the share of all labels that is wrong is smaller.
        class_map: the wrong class for each class that may be mistaken; the others stay.
        num_classes: number of classes, at least 2.
        seed: seed of the noise.

    Returns:
        The noisy labels.

    Raises:
        ValueError: if an argument is out of range; names the argument, what was expected and what was got.
    """
    _check(labels, rate, num_classes)
    for true, wrong in class_map.items():
        if true == wrong or not (0 <= true < num_classes and 0 <= wrong < num_classes):
            raise ValueError(
                f"`class_map` must lead from a class below {num_classes} to another one, got {true} -> {wrong}."
            )
    generator = torch.Generator().manual_seed(seed)
    noisy = labels.clone()
    for true, wrong in sorted(class_map.items()):
        members = (labels == true).nonzero().flatten()
        chosen = torch.randperm(len(members), generator=generator)[: round(rate * len(members))]
        noisy[members[chosen.to(members.device)]] = wrong
    return noisy


def pair_flip_noise(labels: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """Replace a share of each class by the next class, the last class by the first.

    Args:
        labels: integer classes from 0 to ``num_classes - 1``, of shape (n,).
        rate: share of each class to replace, from 0 to 1. From one half on, a class is no longer the most frequent
            label of its own samples.
        num_classes: number of classes, at least 2.
        seed: seed of the noise.

    Returns:
        The noisy labels.

    Raises:
        ValueError: if an argument is out of range; names the argument, what was expected and what was got.
    """
    following = {c: (c + 1) % num_classes for c in range(num_classes)} if num_classes >= 2 else {}
    return asymmetric_noise(labels, rate, following, num_classes, seed)


def instance_noise(features: Tensor, labels: Tensor, rate: float, num_classes: int, seed: int) -> Tensor:
    """Replace labels with a probability, and by a class, that depend on the sample.

    Sample i is mistaken with probability q_i, drawn from a normal distribution of mean ``rate`` and standard deviation
    0.1 cut to [0, 1]; the wrong class is drawn from the softmax of ``features[i] @ W_c`` over the other classes, with
    one standard normal matrix W_c for each true class c. So the share of wrong labels is ``rate`` in expectation only
    (and a little more where the cut matters).

    Args:
        features: float features of shape (n, d), such as standardised pixels.
        labels: integer classes from 0 to ``num_classes - 1``, of shape (n,).
        rate: mean of the probability, from 0 to 1; 0 changes nothing.
        num_classes: number of classes, at least 2.
        seed: seed of the noise.

    Returns:
        The noisy labels.

    Raises:
        ValueError: if an argument is out of range; names the argument, what was expected and what was got.

    References:
        Xia et al., Settings-dependent Label Noise: Towards Instance-dependent Label Noise, NeurIPS 2020, algorithm 2.
    """
    _check(labels, rate, num_classes)
    if features.ndim != 2 or len(features) != len(labels) or not features.is_floating_point():
        raise ValueError(
            f"`features` must be floats of shape ({len(labels)}, d), got {features.dtype} of shape"
            f" {tuple(features.shape)}."
        )
    noisy = labels.clone()
    if rate == 0:
        return noisy
    generator = torch.Generator().manual_seed(seed)
    q = nn.init.trunc_normal_(torch.empty(len(labels)), rate, 0.1, 0.0, 1.0, generator=generator)
    for c in range(num_classes):
        members = (labels == c).nonzero().flatten().cpu()
        weight = torch.randn(features.shape[1], num_classes, generator=generator)
        if len(members):
            logits = features[members.to(features.device)].float().cpu() @ weight
            logits[:, c] = -torch.inf
            chance = q[members, None] * logits.softmax(1)
            chance[:, c] = 1 - q[members]
            drawn = torch.multinomial(chance, 1, generator=generator).flatten()
            noisy[members.to(labels.device)] = drawn.to(labels)
    return noisy


def human_labels(path: str | Path, name: str, true_labels: Tensor) -> Tensor:
    """Read the labels that people gave to CIFAR images (CIFAR-N).

    Args:
        path: ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt`` from http://noisylabels.com.
        name: which labels: ``worse_label``, ``aggre_label``, ``random_label1`` to ``random_label3`` of CIFAR-10N,
            ``noisy_label`` of CIFAR-100N.
        true_labels: the labels of the training set in the file order of torchvision, of shape (n,).

    Returns:
        The labels ``name``, int64 of shape (n,).

    Raises:
        ValueError: if the file is missing, holds no such labels, or belongs to other images.

    References:
        Wei et al., Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations, ICLR 2022.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"`label_file`: there is no file {str(path)!r}. CIFAR-10_human.pt and CIFAR-100_human.pt are to be had at"
            " http://noisylabels.com."
        )
    # What pickle needs for arrays of integers, and nothing else: a file of labels must not run code.
    kinds = {type(np.dtype(kind)) for kind in (np.int64, np.int32, np.uint8)}
    # Written by numpy 1 or 2, read by either: the function is the same, its module is not.
    reconstruct = np.empty(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    needed: list[Any] = [*((reconstruct, name) for name in names), np.ndarray, np.dtype, *kinds]
    with torch.serialization.safe_globals(needed):
        content = torch.load(path, weights_only=True)
    if not isinstance(content, dict) or name not in content or "clean_label" not in content:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"`label_set`: {str(path)!r} must hold 'clean_label' and {name!r}, it holds {found}.")
    clean, labels = (torch.as_tensor(content[key]).long().flatten() for key in ("clean_label", name))
    if not torch.equal(clean, true_labels.cpu()):
        raise ValueError(f"`label_file`: {str(path)!r} belongs to other images: its true labels are not those read.")
    return labels


def _check(labels: Tensor, rate: float, num_classes: int) -> None:
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"`labels` must be integers of shape (n,), got {labels.dtype} of shape {tuple(labels.shape)}.")
    if not 0 <= rate <= 1:
        raise ValueError(f"`rate` must be from 0 to 1, got {rate!r}.")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2, got {num_classes!r}.")
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"`labels` must be from 0 to num_classes - 1 = {num_classes - 1}, got {low} to {high}.")
