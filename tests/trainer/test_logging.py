"""Values that hold for one step: who gets them, and under which step."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import RowLogger, fit
from support.nets import Plain, build

from lightning_same.trainer.logging import log_now


def logged(values: Any, at: int = 2, **options: Any) -> tuple[Any, list[tuple[int | None, dict[str, float]]]]:
    """The Trainer, and the rows of its logger, where something is logged in one of four batches."""

    class Logs(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == at:
                log_now(trainer, values, **options)

    logger = RowLogger()
    made = fit(build(Plain), callbacks=[Logs()], logger=logger, max_steps=4)
    return made, [(step, row) for step, row in logger.rows if "a" in row]


@pytest.mark.parametrize(("options", "step"), [({}, 2), ({"step": 7}, 7), ({"step": 0}, 0)], ids=str)
def test_loggers_get_values_once_and_under_their_step(options: Any, step: int) -> None:
    made, rows = logged({"a": 1.5, "b": torch.tensor(2)}, **options)
    assert rows == [(step, {"a": 1.5, "b": 2.0})]
    assert {key: made.callback_metrics[key].item() for key in "ab"} == {"a": 1.5, "b": 2}
    assert "a" not in made.progress_bar_metrics


def test_the_progress_bar_gets_what_it_is_to_show_under_other_names() -> None:
    made, rows = logged({"a": 1.5, "b": 2.5}, prog_bar={"b": "|b|", "c": "|c|"})
    assert made.progress_bar_metrics == {"|b|": 2.5}
    assert len(rows) == 1


def test_values_may_be_for_callbacks_and_the_progress_bar_alone() -> None:
    made, rows = logged({"a": 1.5}, to_loggers=False, prog_bar={"a": "|a|"})
    assert rows == []
    assert made.callback_metrics["a"] == made.progress_bar_metrics["|a|"] == 1.5
    made, rows = logged({})
    assert rows == []
