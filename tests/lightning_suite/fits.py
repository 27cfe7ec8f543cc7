"""What is put under, or beside, every fit."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl

from lightning_same import SAME, CheckpointFractionMonitor, GradientNormMonitor, SharpnessMonitor, with_sam
from lightning_same.callbacks.monitor import Monitor

FORCED = SAME(1, condition=3.0, rho=0.0)
"""Takes its second pass, of which nothing may be left."""


class Fits:
    """Counts the fits of modules in automatic optimization, and prepares each.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """In this context every such fit is prepared."""
        fit = pl.Trainer.fit
        fits = self

        @functools.wraps(fit)
        def prepared_fit(self: pl.Trainer, model: Any, *args: Any, **kwargs: Any) -> Any:
            if not (isinstance(model, pl.LightningModule) and model.automatic_optimization):
                return fit(self, model, *args, **kwargs)
            fits.count += 1
            with fits.around(self, model):
                return fit(self, model, *args, **kwargs)

        with patch.object(pl.Trainer, "fit", prepared_fit):
            yield

    @contextmanager
    def around(self, trainer: pl.Trainer, model: pl.LightningModule) -> Iterator[None]:
        """One fit runs in this context."""
        yield


class TwoPassFits(Fits):
    """With a second pass in every step."""

    def __init__(self) -> None:
        super().__init__()
        self._mixed: dict[int, tuple[pl.LightningModule, type[pl.LightningModule]]] = {}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        with super().prepared():
            yield
        # A module that several tests share is what it was.
        for model, kind in self._mixed.values():
            vars(model).pop("sam", None)
            model.__class__ = kind

    @contextmanager
    def around(self, trainer: pl.Trainer, model: pl.LightningModule) -> Iterator[None]:
        self._mixed.setdefault(id(model), (model, type(model)))
        with_sam(model, FORCED)
        yield


class Silent(Monitor):
    """Measures without logging what it finds, in the processes that a fit starts too."""

    def _log(self, *args: Any, **kwargs: Any) -> None:
        pass


class SilentFractions(Silent, CheckpointFractionMonitor):
    pass


class SilentNorms(Silent, GradientNormMonitor):
    pass


class SilentSharpness(Silent, SharpnessMonitor):
    pass


class MonitoredFits(Fits):
    """Beside the monitors."""

    @contextmanager
    def around(self, trainer: pl.Trainer, model: pl.LightningModule) -> Iterator[None]:
        monitors = [
            SilentFractions(every_n_steps=1, per_layer=True),
            SilentNorms(every_n_steps=1),
            SilentSharpness(every_n_steps=2, max_products=3, mode="train"),
        ]
        trainer.callbacks[:0] = monitors
        try:
            yield
        finally:
            for each in monitors:
                if each in trainer.callbacks:
                    trainer.callbacks.remove(each)


KINDS: dict[str, type[Fits]] = {"two_pass": TwoPassFits, "monitors": MonitoredFits}
