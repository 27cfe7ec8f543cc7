"""Running code beside training, which leaves no trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from torch import Tensor

from lightning_same.replay.muting import muted, muted_loggers
from lightning_same.replay.snapshot import Snapshot


@contextmanager
def undisturbed(
    trainer: pl.Trainer, module: pl.LightningModule, unheld: Sequence[Tensor] = ()
) -> Iterator[Callable[[], None]]:
    """Whatever runs in this context leaves no trace.

    Nothing is logged or printed. When it ends, by whatever way, the module and the random number generators are as they
    were when it began; see `Snapshot` for what that covers.

    Args:
        trainer: the module's Trainer.
        module: the module.
        unheld: parameters that somebody else puts back.

    Yields:
        To be called in between, to go back to where it began.
    """
    with muted(module), muted_loggers(trainer):
        snapshot = Snapshot(module, unheld, module.device)
        try:
            yield snapshot.restore
        finally:
            snapshot.restore()
