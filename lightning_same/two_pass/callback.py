"""The callback that gives a module its route for the length of a fit."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from typing_extensions import override

from lightning_same.rules.base import Rule
from lightning_same.rules.schedules import Schedule
from lightning_same.trainer.logging import log_now, logs_this_step
from lightning_same.trainer.loop import is_accumulating
from lightning_same.two_pass.announcement import announce
from lightning_same.two_pass.checks import check_inner_modules, check_module
from lightning_same.two_pass.fit import Fit
from lightning_same.two_pass.module import TwoPassModule
from lightning_same.two_pass.routes import AutomaticRoute, ManualRoute, Route


class TwoPassCallback(Callback):
    """Opens and closes the route of a module, and keeps the rule's state in checkpoint files.

    The mixin adds it to the Trainer. A callback of its own, and not hooks of the module: users override those without
    calling super. It stands first among the callbacks, so that the others find the weights at w after an error.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        """The rule's state in the checkpoint file that training resumes from; None if there is no such file."""
        self._left: dict[str, Any] = {}
        """The state at the end of the last fit, for files that are written after it."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._loaded, self._left = None, {}

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_inner_modules(pl_module)
        if isinstance(pl_module, TwoPassModule):
            check_module(pl_module, trainer)
            route = AutomaticRoute if pl_module.automatic_optimization else ManualRoute
            vars(pl_module)["_route"] = route(Fit(pl_module, trainer))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        route = route_of(pl_module)
        if route is not None:
            # Here, for strategies that shard parameters read the file after `on_fit_start`.
            if self._loaded is not None:
                _log_another_rule(self._loaded.get("rule"), route.fit.module.sam)
                route.fit.load_state_dict(self._loaded)
            announce(route.fit)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        route = route_of(pl_module)
        if isinstance(route, ManualRoute):
            route.before_step()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        route = route_of(pl_module)
        if route is not None:
            route.end_batch()
            _log_step(trainer, route)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _forget_what_was_found(pl_module)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _forget_what_was_found(pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if isinstance(pl_module, TwoPassModule):
            route = route_of(pl_module)
            state = self._left if route is None else route.fit.state_dict()
            if state:
                checkpoint["lightning_same"] = state

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loaded = checkpoint.get("lightning_same", {})
        if not isinstance(loaded, dict):
            raise ValueError(f"The checkpoint file's entry `lightning_same` must be a dict, got {loaded!r:.100}.")
        self._loaded = loaded

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close(pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close(pl_module, after_error=True)

    def _close(self, module: pl.LightningModule, after_error: bool = False) -> None:
        route = route_of(module)
        self._loaded = None
        if route is not None:
            del vars(module)["_route"]
            route.close()
            # Gathering what is sharded takes all processes, of which one may have raised.
            state = {} if after_error and route.fit.is_sharded else route.fit.state_dict()
            # The accelerator's memory is free after the fit.
            self._left = move_data_to_device(state, torch.device("cpu"))


def route_of(module: pl.LightningModule) -> Route | None:
    """The route of a module while it is being trained with the mixin; else None."""
    route: Route | None = getattr(module, "_route", None)
    return route


def _forget_what_was_found(module: pl.LightningModule) -> None:
    """Between the steps of training nothing is kept alive that the module has let go of."""
    route = route_of(module)
    if route is not None:
        route.fit.inventory.forget()


def _log_step(trainer: pl.Trainer, route: Route) -> None:
    """Log ``sam/rho`` if it changes as training goes on, and ``sam/skipped_steps`` if steps may be dropped."""
    step = route.step
    if step is None or step.rule is None:
        return
    values: dict[str, float] = {}
    if isinstance(step.rule.rho, Schedule):
        values["sam/rho"] = step.rho
    if step.may_be_dropped:
        values["sam/skipped_steps"] = float(route.fit.skipped_steps)
    if values:
        # In manual optimization Lightning logs at every batch.
        ends = isinstance(route, ManualRoute) or not is_accumulating(trainer)
        log_now(trainer, values, to_loggers=ends and logs_this_step(trainer))


def _log_another_rule(before: str | None, rule: Rule | None) -> None:
    """Log when the resumed rule differs."""
    now = None if rule is None or rule.rho == 0 else repr(rule)
    if before != now:
        rank_zero_info(f"The checkpoint file was written by training {_with(before)}; training continues {_with(now)}.")


def _with(rule: str | None) -> str:
    return "without SAM" if rule is None else f"with {rule}"
