"""Copies of parameters that are not trained, which the micro-batches of one step share."""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from lightning_same.gradients.sharding import any_sharded, local, locals_of
from lightning_same.replay.tensor_copies import TensorCopies, addresses_of

_version_of = attrgetter("_version")


class FrozenCopies:
    """Copies that are made anew only if somebody has written to the parameters since the last ones.

    A write is seen by value on a CPU, and on other devices in the first step that has several micro-batches, for which
    the host waits. Later steps there go by version counters, which miss writes through ``.data``; if the first step
    has seen one that they missed, nothing is shared any more.
    """

    def __init__(self) -> None:
        self._params: Sequence[Tensor] = ()
        self._marks: tuple[list[int], ...] = ()
        self._latest: TensorCopies | None = None
        self._has_compared = False
        self._counters_suffice: bool | None = None

    def of(self, params: Sequence[Tensor]) -> TensorCopies:
        """The values of these parameters now.

        Args:
            params: those that are not trained.
        """
        marks = versions_of(params), addresses_of(params)  # The second for when ``.data`` is replaced.
        same = [id(param) for param in params] == [id(param) for param in self._params] and marks == self._marks
        if self._latest is None or not same or self._were_written(self._latest):
            self._params, self._marks, self._latest = params, marks, TensorCopies(params)
        return self._latest

    def forget(self) -> None:
        """A step is over: the next one begins with new copies."""
        if self._has_compared and self._counters_suffice is None:
            self._counters_suffice = True
        self._params, self._marks, self._latest = (), (), None

    def _were_written(self, latest: TensorCopies) -> bool:
        """Whether the values have changed, though their version counters have not."""
        if all(local(param).device.type == "cpu" for param in self._params):
            return latest.differ()
        if self._counters_suffice is None:
            self._has_compared = True
            if latest.differ():
                self._counters_suffice = False
        return self._counters_suffice is False


def versions_of(params: Sequence[Tensor]) -> list[int]:
    """What changes when a tensor, or this process's part of it, is written to."""
    versions = list(map(_version_of, params))
    if any_sharded(params):
        # An operation on a sharded tensor counts at the tensor, one on the shard at the shard.
        with torch.no_grad():
            versions += map(_version_of, locals_of(params))
    return versions
