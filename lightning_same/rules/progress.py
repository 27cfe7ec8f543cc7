"""How far training has come, for everything that changes with it."""

from typing import NamedTuple

from lightning_same.rules.settings import Settings


class Progress(NamedTuple):
    """How far training has come when a step begins.

    Attributes:
        step: optimizer steps taken so far.
        epoch: epochs finished so far.
        total: optimizer steps of the whole training; None if it has no known end.
        lr_ratio: the learning rate now, as a fraction of its peak.
    """

    step: int = 0
    epoch: int = 0
    total: int | None = None
    lr_ratio: float = 1.0

    def length(self, owner: Settings) -> int:
        """Optimizer steps of the whole training.

        Args:
            owner: the schedule or timing that needs it.

        Raises:
            ValueError: if it is not known; names ``owner``.
        """
        if self.total is None:
            raise ValueError(
                f"{owner!r} needs the length of the training: give the Trainer `max_epochs` or `max_steps`; in a plain"
                " loop, pass `at=Progress(step, total=...)`."
            )
        return self.total

    def fraction(self, owner: Settings) -> float:
        """Fraction of the training that is over, from 0 to 1.

        Args:
            owner: the schedule or timing that needs it.

        Raises:
            ValueError: if the length of the training is not known; names ``owner``.

        Example:
            >>> Progress(step=25, total=100).fraction(Settings())
            0.25
        """
        return min(1.0, self.step / max(1, self.length(owner)))
