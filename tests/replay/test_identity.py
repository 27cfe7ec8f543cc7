"""Whether two tuples hold the same objects, by a loop and by their memory."""

from typing import Any

import pytest

from lightning_same.replay import identity
from lightning_same.replay.identity import ITEMS_ARE_A_ROW, same_objects


@pytest.fixture(params=[True, False], ids=["by_memory", "by_loop"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not ITEMS_ARE_A_ROW:
        pytest.skip("the interpreter keeps tuples in another way")
    monkeypatch.setattr(identity, "ITEMS_ARE_A_ROW", request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 3000])
def test_every_item_counts_and_equal_is_not_the_same(length: int) -> None:
    items: list[Any] = [object() if index % 2 else float(index) for index in range(length)]
    assert same_objects(tuple(items), tuple(items))
    assert not same_objects(tuple(items), (*items, None))
    assert not same_objects((*items, None), tuple(items))
    for index in {0, length // 2, length - 1} & set(range(length)):
        other = [*items]
        other[index] = 0.5 * (2 * index) if index % 2 == 0 else object()
        assert (other[index] == items[index]) == (index % 2 == 0)
        assert not same_objects(tuple(items), tuple(other))


@pytest.mark.usefixtures("way")
def test_nobody_is_asked_whether_it_is_equal() -> None:
    class Never:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    items = tuple(Never() for _ in range(200))
    assert same_objects(items, (*items,))
    assert not same_objects(items, tuple(reversed(items)))
