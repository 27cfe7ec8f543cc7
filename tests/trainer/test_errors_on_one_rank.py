"""A process that raises says so at once: it enters no collective, in which it would wait for the others."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from support.fits import trainer
from support.nets import build, seed_all
from support.ranks import PATIENCE, Ranks
from support.sharded import Sharded, strategy
from support.speed import idle_seconds, slowness
from torch import Tensor, distributed

from lightning_same import GradientNormMonitor, VaSSO, replaying, with_sam

TIMEOUT = 2.5
"""Seconds after which a collective gives up, on an idle machine."""

LATEST = 12.0
"""Seconds after which the process that has waited for a collective, and for another on its way out, has ended."""

PLACES = ["pass one", "pass two", "probe", "saving"]


class Raises(Sharded):
    """The second process raises at its fourth step."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def raise_in(self, place: str) -> None:
        if place == self.place and self.trainer.global_step == 3 and self.global_rank == 1:
            raise KeyError(f"the reason, in {place}")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if getattr(self, "sam", None) is None and replaying():
            self.raise_in("probe")
        else:
            self.raise_in("pass two" if replaying() else "pass one")
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.raise_in("saving")


def fail(place: str, sharded: bool, folder: str, limit: float) -> tuple[str, float]:
    """The error with which a fit ends on this process, and after how many seconds of an idle machine."""
    rank, size = distributed.get_rank(), distributed.get_world_size()

    def start(name: str, timeout: float) -> None:
        distributed.destroy_process_group()
        init = f"file://{folder}/{name}"
        distributed.init_process_group("gloo", init, timedelta(seconds=timeout), rank=rank, world_size=size)

    start("during", limit)
    module = build(Raises, place)
    if place != "probe":
        module = with_sam(module, VaSSO(0.3))
    keep = ModelCheckpoint(folder, every_n_train_steps=3)
    options = strategy() if sharded else {"devices": size, "strategy": DDPStrategy(process_group_backend="gloo")}
    callbacks = [GradientNormMonitor(every_n_steps=1), keep]
    seed_all(1)
    made = trainer(callbacks=callbacks, enable_checkpointing=True, **options)
    with idle_seconds() as passed:
        try:
            made.fit(module)
            error = "none"
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
    start("after", PATIENCE)
    return error, passed()


FSDP2 = pytest.param(True, marks=pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP2 on a CPU"), id="FSDP2")


@pytest.mark.parametrize("sharded", [pytest.param(False, id="DDP"), FSDP2])
@pytest.mark.parametrize("place", PLACES)
def test_the_message_is_told_before_the_time_out(
    ranks: dict[int, Ranks], place: str, sharded: bool, tmp_path: Path
) -> None:
    scale = slowness()
    (others, waited), (message, _) = ranks[2].run(fail, place, sharded, str(tmp_path), TIMEOUT * scale)
    # A collective on the way out would have waited for the time-out, and the message would be its own.
    assert message == f"KeyError: 'the reason, in {place}'"
    assert others != "none", "the first process has to be told too"
    assert waited < LATEST * scale
