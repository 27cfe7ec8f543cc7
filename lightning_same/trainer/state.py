"""What a training step can see, and change, of the Trainer."""

from typing import Any

import lightning.pytorch as pl


class TrainerState:
    """The Trainer's metrics, its place in the epoch, and its flags at one moment.

    A training step that reads ``trainer.callback_metrics`` or ``trainer.is_last_batch`` sees the same again when it is
    replayed. The private names were seen in Lightning 2.5.1 to 2.6.6.

    Args:
        trainer: the Trainer, in a fit.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        results = loop._results
        progress = loop.batch_progress
        self._dicts: list[dict[Any, Any]] = [
            connector._callback_metrics,
            connector._logged_metrics,
            connector._progress_bar_metrics,
            vars(results),
            # Logging replaces the attributes of a result, and writes to none of them.
            *[vars(result) for result in results.values()],
            vars(progress),
            vars(progress.current),
            vars(progress.total),
        ]
        self._items = list(map(dict.copy, self._dicts))
        self._results = dict(results)
        self._last_hook = connector._current_fx
        self._should_stop = trainer.should_stop

    def restore(self) -> None:
        """Put everything back. May be called many times."""
        trainer = self._trainer
        trainer.should_stop = self._should_stop
        trainer._logger_connector._current_fx = self._last_hook
        results = trainer.fit_loop.epoch_loop._results
        # Also where there are as many: what is logged for the first time, in each pass, has a result for each.
        results.clear()
        results.update(self._results)
        for dictionary, items in zip(self._dicts, self._items, strict=True):
            dictionary.clear()
            dictionary.update(items)
