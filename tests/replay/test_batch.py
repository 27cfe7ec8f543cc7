"""Copies of a batch: nothing is shared with it."""

import threading
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_same.replay.batch import copy_of


@dataclass
class Sample:
    x: torch.Tensor
    extra: dict[str, Any]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"x": x, "extra": {"n": [1]}},
        lambda x: UserDict(x=x, extra={"n": [1]}),
        lambda x: Sample(x, {"n": [1]}),
        lambda x: SimpleNamespace(x=x, extra={"n": [1]}),
    ],
    ids=["dict", "UserDict", "dataclass", "object"],
)
def test_a_copy_of_a_batch_shares_nothing_with_it(make: Any) -> None:
    batch = [make(torch.ones(2)), torch.ones(2, requires_grad=True) * 2]
    copied = copy_of(batch)
    fields = batch[0] if isinstance(batch[0], dict | UserDict) else vars(batch[0])
    fields["x"].mul_(3)
    fields["extra"]["n"].append(2)
    fields.pop("extra")
    kept = copied[0] if isinstance(copied[0], dict | UserDict) else vars(copied[0])
    assert type(copied[0]) is type(batch[0])
    assert kept["x"].tolist() == [1, 1]
    assert kept["extra"] == {"n": [1]}
    assert copied[1].tolist() == [2, 2]
    assert copied[1].grad_fn is None


def test_a_batch_that_cannot_be_copied_is_named() -> None:
    batch = {"lock": threading.Lock()}
    with pytest.warns(UserWarning, match="The batch, a dict, cannot be copied"):
        assert copy_of(batch) is batch


def test_a_copy_of_a_slice_is_no_larger_than_the_slice() -> None:
    data = torch.arange(1000.0)
    copied = copy_of([data[10:14], 3])
    assert copied[0].tolist() == [10, 11, 12, 13]
    assert copied[0].untyped_storage().nbytes() == 16


def test_what_a_batch_shares_its_copy_shares() -> None:
    x, items = torch.zeros(2), [1]
    twice, view, lists = copy_of([x, x]), copy_of({"x": x, "view": x[:1]}), copy_of((items, items))
    assert twice[0] is twice[1]
    view["x"].add_(1)
    assert view["view"].tolist() == [1]
    assert lists[0] is lists[1]
    assert lists[0] is not items


def test_a_tensor_with_a_history_is_copied_by_value() -> None:
    """As one comes out of a data set that computes with parameters."""
    leaf = torch.ones(2, requires_grad=True)
    for batch in ([leaf * 2], (leaf * 2, 1), {"x": leaf * 2}, [[leaf * 2], "text"]):
        (x,) = [item for item in torch.utils._pytree.tree_leaves(batch) if isinstance(item, torch.Tensor)]
        (copied,) = [item for item in torch.utils._pytree.tree_leaves(copy_of(batch)) if isinstance(item, torch.Tensor)]
        x.data.add_(5)
        assert copied.tolist() == [2, 2]
        assert not copied.requires_grad


def test_a_tensor_with_attributes_keeps_them_and_shares_neither_them_nor_its_values() -> None:
    """As detectors hang the boxes' size onto the image, and MONAI its metadata."""
    x = torch.zeros(2)
    x.sizes = [3, 4]  # type: ignore[attr-defined]
    (copied,) = copy_of([x])
    x.add_(1)
    x.sizes.append(5)  # type: ignore[attr-defined]
    assert copied.tolist() == [0, 0]
    assert copied.sizes == [3, 4]
