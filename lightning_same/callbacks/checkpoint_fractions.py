"""Which share of the gradient's elements lies in each of the four checkpoints."""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_same.callbacks.gradient_monitor import GradientMonitor, Parts, keyed, tallied
from lightning_same.callbacks.noisy_samples import NoisyMask
from lightning_same.callbacks.probe import LossFn
from lightning_same.gradients.checkpoints import (
    CKPTS,
    RATIO_EDGES,
    checkpoint_counts,
    fractions_of,
    ratio_counts,
    shares,
)
from lightning_same.gradients.pair import TwoGradients

BINS = [f"{low:g}-{high:g}" for low, high in pairwise(RATIO_EDGES)]


class CheckpointFractionMonitor(GradientMonitor):
    """Logs which share of the gradient's elements lies in each of the four checkpoints.

    On a module that trains with a rule it reads the two gradients of the step. This takes no extra pass and does not
    wait for the accelerator. Steps without a second pass log nothing. On any other module it computes the two
    gradients of the current batch by two passes of its own. They leave no trace: training stays bit for bit what it
    is without the callback, if `training_step` can be replayed (see `ReplayCheck`). Monitors that measure the same
    step share these passes. Under DDP the gradients are averaged over the processes first, so every rank holds the
    same value.

    Logged, each between 0 and 1, together 1:
        ``ckpt_fraction/ckpt1`` to ``ckpt_fraction/ckpt4``, ``ckpt_fraction/rest``. The rest can be large: an inactive
        ReLU has g = s = 0.

    Args:
        every_n_steps: measure, and log, at every n-th step, the first included. Default: the Trainer's
            ``log_every_n_steps``.
        every_n_epochs: measure the first step of every n-th epoch instead, the first epoch included.
        per_layer: log the shares within each parameter tensor too: ``ckpt_fraction_layer/NAME/ckpt1`` and so on, by the
            names of ``named_parameters()``. Weighted by the tensors' numbers of elements, they sum to the totals.
        per_group: log the shares within each of the optimizers' parameter groups too:
            ``ckpt_fraction_group/NAME/ckpt1`` and so on, by the group's ``"name"``, or else ``pg1``, ``pg2`` and so on.
        histogram: log how far g and s differ within each checkpoint too: ``ckpt_histogram/ckpt1/1.2-1.5`` is the share
            of all elements that are in checkpoint 1 with 1.2 < r <= 1.5; the seven bins of a checkpoint sum to its
            fraction. In checkpoints 2 and 4 the bins are of 1/abs(r). The edges are 1, 1.2, 1.5, 2, 4, 8, 16 and inf.
        noisy_mask: which samples of ``batch`` are noisy, a boolean tensor of shape (n,). Logs
            ``ckpt_fraction_clean/...`` and ``ckpt_fraction_noisy/...``: the shares for the gradients of the clean and
            of the noisy samples alone, both at the w + e of the whole batch; see
            `lightning_same.callbacks.probe.probe`. Costs four passes, each over a part of the batch, and two more on
            a module that trains with a rule, to find e.
        prog_bar: show the four shares in the progress bar too, as ``ckpt1`` to ``ckpt4``.
        rho: radius of the perturbation wherever the monitor computes the gradients itself: on a module without a rule,
            and for ``noisy_mask``.
        loss_fn: the loss of ``(module, batch)`` there. Default: the module's training step; a module in manual
            optimization needs one.
        name: becomes part of the keys, as in ``ckpt_fraction/NAME/ckpt1``, for several monitors in one training.

    Raises:
        ValueError: if ``every_n_steps`` or ``every_n_epochs`` is not a whole number >= 1, if both are given, if ``rho``
            is not a number > 0, or if ``name`` cannot be part of a key.
    """

    keys_begin_with = "ckpt_fraction"
    shown: ClassVar = {f"ckpt_fraction/ckpt{k}": f"ckpt{k}" for k in CKPTS}

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        per_layer: bool = False,
        per_group: bool = False,
        histogram: bool = False,
        noisy_mask: NoisyMask | None = None,
        prog_bar: bool = False,
        rho: float = 0.05,
        loss_fn: LossFn | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps, every_n_epochs, per_layer, per_group, noisy_mask, prog_bar, rho, loss_fn, name)
        self.histogram = histogram

    @override
    def measured(self, gradients: TwoGradients, parts: Parts, of: str = "") -> dict[str, Tensor]:
        """The shares, by their keys."""
        sizes = [grad.numel() for grad in gradients.grads]
        counts, counts_of = tallied(checkpoint_counts, gradients, parts)
        values = keyed(f"ckpt_fraction{of}", fractions_of(counts, sum(sizes))._asdict())
        for part, indices in parts.items():
            size = max(1, sum(sizes[index] for index in indices))
            values |= keyed(f"ckpt_fraction{of}{part}", fractions_of(counts_of[part], size)._asdict())
        if self.histogram:
            bins = ratio_counts(gradients.grads, gradients.perturbed_grads)
            for k, row in zip(CKPTS, shares(bins, sum(sizes)), strict=True):
                values |= keyed(f"ckpt_histogram{of}/ckpt{k}", dict(zip(BINS, row, strict=True)))
        return values
