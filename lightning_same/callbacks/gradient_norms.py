"""The norms of the gradients and the angle between them."""

from typing import ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_same.callbacks.gradient_monitor import GradientMonitor, Parts, keyed, tallied
from lightning_same.callbacks.noisy_samples import NoisyMask
from lightning_same.callbacks.probe import LossFn
from lightning_same.gradients.grads import dense
from lightning_same.gradients.norms import norms_of, squared_shares, sums_of_squares
from lightning_same.gradients.pair import TwoGradients
from lightning_same.gradients.tensors import global_norm
from lightning_same.trainer.optimizers import trained
from lightning_same.trainer.precision import scale_before_step


class GradientNormMonitor(GradientMonitor):
    r"""Logs the norms of the gradients and the cosine of the angle between them.

    On a module that trains with a rule it reads the two gradients of the step. This takes no extra pass, and nothing
    waits for the accelerator until the values are logged. On any other module it computes the two gradients of the
    current batch by two passes of its own. They leave no trace: training stays bit for bit what it is without the
    callback, if `training_step` can be replayed (see `ReplayCheck`). Monitors that measure the same step share these
    passes. Under DDP the gradients are averaged over the processes first, so every rank holds the same value. All norms
    are L2 over all elements, in at least float32, of gradients without a loss scale.

    Logged:
        - ``grad_norm/base``, ``grad_norm/perturbed``: of g, the gradient at w, and of s, the one at w + e.
        - ``grad_norm/ckpt1`` to ``grad_norm/ckpt4``: of s over the elements of each checkpoint.
        - ``grad_share/ckpt1`` to ``grad_share/ckpt4``, ``grad_share/rest``: the shares of \|\|s\|\|^2, together 1. A
          checkpoint may hold many elements and next to nothing of s.
        - ``grad_cosine``: the cosine of the angle between g and s; 0 where one of them is zero.
        - ``grad_norm/step``: of d, which is in ``.grad`` when the optimizer steps, before clipping and weight decay.
          Where gradients accumulate, d is that of the whole window. On a module without a rule, g and s are then those
          of the window's first batch.
        - ``weight_norm``: of w, over the parameters that the optimizer steps, before the step.

    The last two are logged on steps without a second pass too. In manual optimization they are those of the batch's
    last step; a step that does not go through ``self.optimizers()`` is not seen.

    Args:
        every_n_steps: measure, and log, at every n-th step, the first included. Default: the Trainer's
            ``log_every_n_steps``.
        every_n_epochs: measure the first step of every n-th epoch instead, the first epoch included.
        per_layer: log the values of each parameter tensor too: ``grad_norm_layer/NAME/base`` and so on,
            ``grad_cosine_layer/NAME`` and ``weight_norm_layer/NAME``, by the names of ``named_parameters()``. The
            squares of the norms sum to those of the totals.
        per_group: log the values of each of the optimizers' parameter groups too: ``grad_norm_group/NAME/base`` and so
            on, by the group's ``"name"``, or else ``pg1``, ``pg2`` and so on.
        noisy_mask: which samples of ``batch`` are noisy, a boolean tensor of shape (n,). Logs ``grad_norm_clean/...``,
            ``grad_norm_noisy/...``, ``grad_cosine_clean`` and ``grad_cosine_noisy``: the values for the mean gradients
            of the clean and of the noisy samples alone, both at the w + e of the whole batch; see
            `lightning_same.callbacks.probe.probe`. Costs four passes, each over a part of the batch, and two more on
            a module that trains with a rule, to find e.
        prog_bar: show the norms of g, s and d in the progress bar too, as ``|g|``, ``|s|`` and ``|d|``.
        rho: radius of the perturbation wherever the monitor computes the gradients itself: on a module without a rule,
            and for ``noisy_mask``.
        loss_fn: the loss of ``(module, batch)`` there. Default: the module's training step; a module in manual
            optimization needs one.
        name: becomes part of the keys, as in ``grad_norm/NAME/base``, for several monitors in one training.

    Raises:
        ValueError: if ``every_n_steps`` or ``every_n_epochs`` is not a whole number >= 1, if both are given, if ``rho``
            is not a number > 0, or if ``name`` cannot be part of a key.
    """

    keys_begin_with = "grad_norm"
    shown: ClassVar = {"grad_norm/base": "|g|", "grad_norm/perturbed": "|s|", "grad_norm/step": "|d|"}

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        per_layer: bool = False,
        per_group: bool = False,
        noisy_mask: NoisyMask | None = None,
        prog_bar: bool = False,
        rho: float = 0.05,
        loss_fn: LossFn | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps, every_n_epochs, per_layer, per_group, noisy_mask, prog_bar, rho, loss_fn, name)

    @override
    def measured(self, gradients: TwoGradients, parts: Parts, of: str = "") -> dict[str, Tensor]:
        """The norms, cosines and shares, by their keys."""
        sums, sums_of = tallied(sums_of_squares, gradients, parts)
        values: dict[str, Tensor] = {}
        for part, squares in {"": sums, **sums_of}.items():
            norms = norms_of(squares, gradients.scale)._asdict()
            values[f"grad_cosine{of}{part}"] = norms.pop("cosine")
            values |= keyed(f"grad_norm{of}{part}", norms)
            values |= keyed(f"grad_share{of}{part}", squared_shares(squares)._asdict())
        return values

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if not self.wants_two_pass_gradients(trainer):
            return
        params = trained(optimizer)
        scale = scale_before_step(trainer, optimizer, pl_module.device)
        for part, indices in {"": range(len(params)), **self._parts(trainer, pl_module, params)}.items():
            some = [params[index] for index in indices]
            steps = [dense(param.grad) for param in some if param.grad is not None]
            if steps or not part:
                norm = global_norm(steps)
                self._values[f"grad_norm{part}/step"] = norm if scale is None else norm / scale
            self._values[f"weight_norm{part}"] = global_norm(some)
