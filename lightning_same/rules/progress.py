"""How far training has come, for whatever changes with it."""

from typing import NamedTuple

from lightning_same.rules.settings import Settings


class Progress(NamedTuple):
    """How far training has come when a step begins.

    Attributes:
        step: optimizer steps taken so far.
        epoch: epochs finished so far.
        total: optimizer steps of the whole training; None if it has no known end.
        lr_ratio: the learning rate now, as a share of its peak.
    """

    step: int = 0
    epoch: int = 0
    total: int | None = None
    lr_ratio: float = 1.0

    def fraction(self, owner: Settings) -> float:
        """Share of the training that is over, from 0 to 1.

        Raises:
            ValueError: if the length is not known; names ``owner``, which needs it.
        """
        if self.total is None:
            raise ValueError(
                f"{owner!r} needs the length of the training: give the Trainer `max_epochs` or `max_steps`; in a plain"
                " loop, pass `at=Progress(step, total=...)`."
            )
        return min(1.0, self.step / max(1, self.total))
