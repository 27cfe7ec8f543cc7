"""Trained weights that a training step writes to by itself, such as prototypes that it normalizes."""

from collections.abc import Sequence

from torch import Tensor

from lightning_same.replay.frozen import versions_of
from lightning_same.replay.snapshot import Snapshot
from lightning_same.replay.tensor_copies import TensorCopies, addresses_of


class WeightsBefore:
    """The trained weights before the first forward of a step.

    Whether a training step writes to them is seen by value on the first step of a fit, and by their version counters on
    all others.

    Args:
        params: the weights.
        copy: whether to keep a copy, which pass two needs to begin where pass one began.
        start: the state at this moment, of which the weights are left out.

    Attributes:
        params: the same.
        copies: the copy, if there is one.
    """

    def __init__(self, params: Sequence[Tensor], copy: bool, start: Snapshot) -> None:
        self.params = params
        self._versions = versions_of(params)
        self._addresses = start.unheld_addresses or self._addresses_now()
        self.copies = TensorCopies(params) if copy else None

    def were_written(self, now: Snapshot) -> bool:
        """Whether somebody has written to them since.

        Args:
            now: the state now.
        """
        if versions_of(self.params) != self._versions:
            return True
        # As by ``.data = ...``. Where a snapshot has found all as it was, none has moved.
        if now.unheld_addresses is not self._addresses and self._addresses_now() != self._addresses:
            return True
        return self.copies is not None and self.copies.differ()

    def _addresses_now(self) -> list[int]:
        return addresses_of(list({id(param): param for param in self.params}.values()))
