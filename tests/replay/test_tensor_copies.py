"""Copies of many tensors: each holds the values of its moment, wherever they are."""

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_same.replay.tensor_copies import SPARE_BYTES, TensorCopies, TensorGroups


def several() -> list[Tensor]:
    """Of two dtypes, dense, channels_last, with gaps, empty, sparse and without a dimension."""
    return [
        torch.arange(6.0).view(2, 3),
        torch.arange(48.0).view(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.arange(8.0)[::2],
        torch.arange(3),
        torch.tensor(5),
        torch.zeros(0),
        torch.eye(3).to_sparse(),
    ]


def values(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.to_dense().clone() for tensor in tensors]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def change(tensors: list[Tensor], by: int) -> None:
    for tensor in tensors:
        tensor.mul_(by) if tensor.is_sparse else tensor.add_(by)


def test_copies_that_are_alive_together_do_not_share_a_block() -> None:
    tensors = several()
    groups = TensorGroups(tensors)
    moments = []
    for turn in range(4):  # In later turns the blocks of earlier ones are used again.
        for _ in range(3):
            change(tensors, 2 + turn)
            moments.append((TensorCopies(groups), values(tensors)))
        for copies, before in moments:
            copies.restore()
            assert same(values(tensors), before)
        del copies
        moments = moments[turn % 2 : 1]


def test_blocks_are_used_again() -> None:
    groups = TensorGroups(several()[:2])
    made = groups.copied()
    groups.take_back(made)
    assert groups.copied() is made
    assert groups.copied() is not made


def test_a_block_made_in_inference_mode_is_filled_in_training() -> None:
    tensor = [torch.zeros(2), torch.zeros(3)]
    groups = TensorGroups(tensor)
    with torch.inference_mode():
        TensorCopies(groups)
    tensor[0].add_(1)
    copies = TensorCopies(groups)
    tensor[0].add_(1)
    copies.restore()
    assert tensor[0].tolist() == [1, 1]


MOVES: dict[str, Callable[[Tensor], object]] = {
    "data": lambda tensor: setattr(tensor, "data", torch.full((2, 2), 9.0)),
    "transposed data": lambda tensor: setattr(tensor, "data", torch.full((2, 2), 9.0).t()),
    "a view of the same data": lambda tensor: setattr(tensor, "data", tensor.data.t()),
    "t_": lambda tensor: tensor.t_(),
    "set_": lambda tensor: tensor.set_(torch.full((2, 2), 9.0)),
    "another dtype": lambda tensor: setattr(tensor, "data", torch.full((2, 2), 9.0).double()),
    "the next elements": lambda tensor: tensor.set_(torch.arange(8.0).untyped_storage(), 4, (2, 2), (2, 1)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("others", [0, 1])
def test_a_tensor_that_has_moved_gets_its_values_where_it_is(move: Callable[[Tensor], object], others: int) -> None:
    tensor = torch.arange(4.0).view(2, 2)
    groups = TensorGroups([tensor, *[torch.ones(3) for _ in range(others)]])
    assert not groups.have_moved()
    copies = TensorCopies(groups)
    move(tensor)
    assert groups.have_moved()
    copies.restore()
    assert tensor.tolist() == [[0, 1], [2, 3]]


def test_a_file_that_may_not_be_written_to_is_left_alone_beside_what_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.ones(3, dtype=np.float32))
    mapped = torch.from_numpy(np.load(tmp_path / "array.npy", mmap_mode="r"))
    tensors = [torch.zeros(2), mapped, torch.zeros(4)]
    groups = TensorGroups(tensors)
    for turn in range(3):  # To write to the map would end the process.
        copies = TensorCopies(groups)
        tensors[turn % 2 * 2].add_(1)
        before = [[0.0, 0.0], [0.0] * 4]
        copies.restore()
        assert [tensors[0].tolist(), tensors[2].tolist()] == before


def test_what_was_seen_written_once_comes_back_each_time() -> None:
    written, quiet = torch.zeros(2), torch.zeros(3)
    groups = TensorGroups([written, quiet])
    for turn in range(4):
        copies = TensorCopies(groups)
        written += 1
        if turn == 3:
            quiet += 1
        copies.restore()
        assert not written.any()
        assert not quiet.any()


def test_released_tensors_are_put_back_once() -> None:
    tensors = several()
    copies, before = TensorCopies(TensorGroups(tensors)), values(tensors)
    change(tensors, 3)
    copies.release(tensors[:3])
    assert same(values(tensors[:3]), before[:3])
    change(tensors, 3)
    copies.restore()
    assert same(values(tensors[3:]), before[3:])
    assert not same(values(tensors[:3]), before[:3])


@pytest.mark.parametrize("is_large", [False, True])
def test_between_two_copies_no_more_is_kept_than_a_few_megabytes(is_large: bool) -> None:
    tensors = [torch.zeros(SPARE_BYTES // 8 + is_large), torch.zeros(SPARE_BYTES // 8)]
    groups = TensorGroups(tensors)
    first, second = TensorCopies(groups), TensorCopies(groups)
    kept = [weakref.ref(part) for copies in (first, second) for _, parts in copies._copies for part in parts]
    del first, second
    assert [part() is not None for part in kept] == [not is_large] * 4
