"""What is dispatched, counted, and the rules of which it is."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_same
from lightning_same import ASAM, GSAM, SAM, SAME, USAM, WSAM, CheckpointSelect, CustomSAME, Rule

ALL_RULES = [
    kind()
    for kind in (getattr(lightning_same, name) for name in lightning_same.__all__)
    if isinstance(kind, type) and issubclass(kind, Rule) and kind is not Rule
]
"""Every named rule, none left out."""

RULES = [SAM(), ASAM(), USAM(), SAME(1, 2.0), CustomSAME(3.0), CheckpointSelect((1, 4)), WSAM(), GSAM()]


class Counted(TorchDispatchMode):
    """What is dispatched: operations on elements by name, and how many views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            self.views += 1
        else:
            self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def most_bytes() -> Iterator[Callable[[], int]]:
    """The most that is allocated at once in a ``with`` block, beyond what was there at its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield lambda: most
    alive = most = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
