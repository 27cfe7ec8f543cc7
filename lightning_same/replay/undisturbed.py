"""Running code beside training, which leaves no trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from torch import Tensor

from lightning_same.replay.frozen import FrozenCopies
from lightning_same.replay.latest_inventory import LatestInventory
from lightning_same.replay.muting import muted
from lightning_same.replay.replaying import as_replay
from lightning_same.replay.snapshot import Snapshot
from lightning_same.trainer.state import TrainerState


class ReplayState:
    """Everything that a training step may see or change, at one moment.

    Args:
        trainer: the module's Trainer.
        module: the module.
        unheld: parameters that somebody else puts back.
        latest: what was found in the module before.
        frozen: copies of parameters that are not trained, which are taken from there if they are still right.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        unheld: Sequence[Tensor] = (),
        *,
        latest: LatestInventory | None = None,
        frozen: FrozenCopies | None = None,
    ) -> None:
        self.module = Snapshot(module, unheld, module.device, frozen=frozen, latest=latest)
        self.trainer = TrainerState(trainer)

    def restore(self, now: "ReplayState | None" = None) -> None:
        """Put everything back. May be called many times.

        Args:
            now: the state at this moment, if it is known; see `Snapshot.restore`.
        """
        try:
            self.module.restore(None if now is None else now.module)
        finally:
            self.trainer.restore()

    def release(self, params: Sequence[Tensor]) -> None:
        """Put these parameters back for the last time: from now on somebody else takes care of them."""
        self.module.release(params)


@contextmanager
def undisturbed(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    unheld: Sequence[Tensor] = (),
    latest: LatestInventory | None = None,
    *,
    in_step: bool = False,
) -> Iterator[ReplayState]:
    """Whatever runs in this context leaves no trace.

    What is logged can be read back, and reaches no logger; nothing is printed. When the context ends, by whatever way,
    the module, its Trainer and the random number generators are as they were when it began; see `Snapshot` and
    `TrainerState` for what that covers.

    Args:
        trainer: the module's Trainer.
        module: the module.
        unheld: parameters that somebody else puts back.
        latest: what was found in the module before.
        in_step: whether all processes repeat the training step that they are in; see `muted`.

    Yields:
        The state in which the context began, which may be put back in between.
    """
    # Before anything is muted, for that adds attributes to the module.
    state = ReplayState(trainer, module, unheld, latest=latest)
    try:
        with as_replay(), muted(trainer, module, in_step=in_step):
            yield state
    finally:
        state.restore()
