"""Trained weights that a training step writes to by itself, such as prototypes that it normalizes."""

from collections.abc import Sequence

from torch import Tensor

from lightning_same.replay.frozen import marks_of
from lightning_same.replay.tensor_copies import TensorCopies


class WeightsBefore:
    """The trained weights before the first forward of a step.

    Whether a training step writes to them is seen by value on the first step of a fit, and by their version counters on
    all others.

    Args:
        params: the weights.
        copy: whether to keep a copy, which pass two needs to begin where pass one began.

    Attributes:
        params: the same.
        copies: the copy, if there is one.
    """

    def __init__(self, params: Sequence[Tensor], copy: bool) -> None:
        self.params = params
        self._marks = marks_of(params)
        self.copies = TensorCopies(params) if copy else None

    def were_written(self) -> bool:
        """Whether somebody has written to them since."""
        return marks_of(self.params) != self._marks or (self.copies is not None and self.copies.differ())
