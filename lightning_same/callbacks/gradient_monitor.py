"""When to measure the two gradients, where they come from, and how the values are logged."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from lightning_same.callbacks.cadence import Cadence
from lightning_same.callbacks.monitor import Monitor
from lightning_same.callbacks.noisy_samples import NoisyMask
from lightning_same.callbacks.probe import LossFn, check_probe, probe
from lightning_same.gradients.pair import TwoGradients
from lightning_same.replay.modules import modules_of
from lightning_same.rules.base import Rule
from lightning_same.rules.settings import check_function, check_number
from lightning_same.trainer.distributed import reshard
from lightning_same.trainer.loop import callbacks_of, is_accumulating

Parts = dict[str, list[int]]
"""Parts of the parameters: what a part adds to the first part of a key, and the places of its tensors."""


class GradientMonitor(Monitor, abc.ABC):
    """Measures the two gradients of a step and logs what it finds.

    On a module that trains with a rule it reads the gradients of the step. This takes no extra pass, and nothing waits
    for the accelerator until the values are logged. On any other module it computes the two gradients of the current
    batch by two passes of its own. They leave no trace: training stays bit for bit what it is without the callback, if
    `training_step` can be replayed (see `ReplayCheck`). Monitors that measure the same step share these passes.

    Args:
        every_n_steps: measure, and log, at every n-th step, the first included. Default: the Trainer's
            ``log_every_n_steps``.
        every_n_epochs: measure the first step of every n-th epoch instead, the first epoch included.
        per_layer: log the values of each parameter tensor too, under its name.
        per_group: log the values of each of the optimizers' parameter groups too, under its ``"name"``, or else as
            ``pg1`` and so on.
        noisy_mask: which samples of ``batch`` are noisy, a boolean tensor of shape (n,). Logs the values of the clean
            and of the noisy samples beside those of the batch.
        prog_bar: show the main values in the progress bar too.
        rho: radius of the perturbation wherever the monitor computes the gradients itself: on a module without a rule,
            and for ``noisy_mask``.
        loss_fn: the loss of ``(module, batch)`` there. Default: the module's training step; a module in manual
            optimization needs one.
        name: becomes part of the keys.

    Raises:
        ValueError: if ``every_n_steps`` or ``every_n_epochs`` is not a whole number >= 1, if both are given, if ``rho``
            is not a number > 0, or if ``name`` cannot be part of a key.
    """

    def __init__(
        self,
        every_n_steps: int | None,
        every_n_epochs: int | None,
        per_layer: bool,
        per_group: bool,
        noisy_mask: NoisyMask | None,
        prog_bar: bool,
        rho: float,
        loss_fn: LossFn | None,
        name: str | None,
    ) -> None:
        super().__init__(name)
        self.cadence = Cadence(self, every_n_steps, every_n_epochs)
        check_function(self, "noisy_mask", noisy_mask)
        check_function(self, "loss_fn", loss_fn)
        self.per_layer = per_layer
        self.per_group = per_group
        self.noisy_mask = noisy_mask
        self.prog_bar = prog_bar
        self.rho = check_number(self, "rho", rho, above=0)
        self.loss_fn = loss_fn
        self._values: dict[str, Tensor] = {}

    @abc.abstractmethod
    def measured(self, gradients: TwoGradients, parts: Parts, of: str = "") -> dict[str, Tensor]:
        """The values to log, by their keys: scalar tensors, on which nothing has waited.

        Args:
            gradients: g and s.
            parts: of which to log the values too.
            of: appended to each key's group, for the gradients of a part of the batch.
        """

    def wants_two_pass_gradients(self, trainer: pl.Trainer) -> bool:
        """Whether this step is measured."""
        return self.cadence.measures_step(trainer)

    def on_two_pass_gradients(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, gradients: TwoGradients
    ) -> None:
        """Called by a two-pass step when both gradients are known.

        Where a batch takes several such steps, the last one is logged.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            gradients: g and s.
        """
        self._measure(trainer, pl_module, gradients)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._values.clear()
        if self.noisy_mask is not None or not trains_by_a_rule(pl_module):
            check_probe(pl_module, trainer, self.loss_fn, type(self).__name__, parts=self.noisy_mask is not None)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        by_a_rule = trains_by_a_rule(pl_module)
        if batch_idx % trainer.accumulate_grad_batches or (by_a_rule and self.noisy_mask is None):
            return
        # The first of those that want the same gradients takes them for all.
        sharing = [monitor for monitor in self._alike(trainer) if monitor.noisy_mask is not None or not by_a_rule]
        if not sharing or sharing[0] is not self:
            return
        masks = tuple(dict.fromkeys(monitor.noisy_mask for monitor in sharing if monitor.noisy_mask is not None))
        probed = probe(trainer, pl_module, batch, batch_idx, self.rho, self.loss_fn, masks)
        if probed is None:
            return
        for monitor in sharing:
            if not by_a_rule:
                monitor.on_two_pass_gradients(trainer, pl_module, probed.whole)
            parts = probed.parts.get(monitor.noisy_mask, {}) if monitor.noisy_mask is not None else {}
            for part, gradients in parts.items():
                monitor._measure(trainer, pl_module, gradients, f"_{part}")

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._values and not is_accumulating(trainer):
            values, self._values = self._values, {}
            self._log(trainer, values, prog_bar=self.prog_bar)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, gradients: TwoGradients, of: str = "") -> None:
        self._values.update(self.measured(gradients, self._parts(trainer, module, gradients.params), of))

    def _parts(self, trainer: pl.Trainer, module: pl.LightningModule, params: Sequence[Tensor]) -> Parts:
        """The layers and parameter groups whose values are asked for."""
        parts: Parts = {}
        if self.per_layer:
            reshard(modules_of(module))  # Or they would be the names of parameters that FSDP2 has gathered.
            known: dict[Tensor, str] = {param: name for name, param in module.named_parameters()}
            parts |= {f"_layer/{known[param]}": [i] for i, param in enumerate(params) if param in known}
        if self.per_group:
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            labels = {
                param: f"_group/{group.get('name') or f'pg{number}'}"
                for number, group in enumerate(groups, 1)
                for param in group["params"]
            }
            for index, param in enumerate(params):
                if param in labels:
                    parts.setdefault(labels[param], []).append(index)
        return parts

    def _alike(self, trainer: pl.Trainer) -> Iterator["GradientMonitor"]:
        """The Trainer's monitors that measure this step on the same loss with the same radius."""
        monitors = [callback for callback in callbacks_of(trainer) if isinstance(callback, GradientMonitor)]
        for monitor in monitors:
            same = (monitor.rho, monitor.loss_fn) == (self.rho, self.loss_fn)
            if same and monitor.wants_two_pass_gradients(trainer):
                yield monitor


def trains_by_a_rule(module: pl.LightningModule) -> bool:
    """Whether its steps are those of a two-pass rule now."""
    return isinstance(getattr(module, "sam", None), Rule)


def tallied(
    tally: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor], gradients: TwoGradients, parts: Parts
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``tally`` sums over all tensors, and over each part, in one sweep."""
    _, grads, perturbed_grads, _ = gradients
    if not parts:
        return tally(grads, perturbed_grads), {}
    each = torch.stack([tally([g], [s]).to(grads[0].device) for g, s in zip(grads, perturbed_grads, strict=True)])
    return each.sum(dim=0), {part: each[indices].sum(dim=0) for part, indices in parts.items()}


def keyed(group: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values under ``group/name``."""
    return {f"{group}/{name}": value for name, value in values.items()}
