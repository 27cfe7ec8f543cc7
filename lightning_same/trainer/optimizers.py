"""What the passes ask of an optimizer, and of the Trainer that steps it."""

import math
from collections.abc import MutableMapping

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_same.rules.progress import Progress


def trained(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that an optimizer steps."""
    return [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]


def radii_of(optimizer: Optimizer, rho: float) -> dict[Tensor, float]:
    """The parameters that an optimizer steps, each with its radius: its group's ``rho``, or else the rule's."""
    own = "rho" not in optimizer.defaults
    return {
        param: group.get("rho", rho) if own else rho
        for group in optimizer.param_groups
        for param in group["params"]
        if param.requires_grad
    }


_READ: MutableMapping[Tensor, tuple[int, float]] = WeakTensorKeyDictionary()
"""Learning rates that are tensors: their version counters when they were read, and their values then."""


def _number(lr: float | Tensor) -> float:
    """The value of a learning rate. For one on an accelerator the host waits only after it has been written to."""
    if not isinstance(lr, Tensor):
        return float(lr)
    if lr not in _READ or _READ[lr][0] != lr._version:
        _READ[lr] = lr._version, float(lr)
    return _READ[lr][1]


def lr_ratio(optimizer: Optimizer) -> float:
    """The learning rate of the first group, as a share of its peak."""
    group = optimizer.param_groups[0]
    lr = _number(group.get("lr", 1.0))
    peak = _number(group.get("max_lr", group.get("initial_lr", lr)))
    return lr / peak if peak else 0.0


def largest_lr(trainer: pl.Trainer) -> float:
    """The largest learning rate of all optimizers and parameter groups; 0 if none has any."""
    rates = [_number(group.get("lr", 0.0)) for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return max(rates, default=0.0)


def progress_of(trainer: pl.Trainer, optimizer: Optimizer, batches: int | None) -> Progress:
    """How far training has come between two batches, when the next step of an optimizer begins.

    Args:
        trainer: the Trainer.
        optimizer: which of its optimizers.
        batches: batches so far, which are the steps in manual optimization, where ``global_step`` counts those of all
            optimizers; None in automatic optimization.
    """
    if batches is None:
        step, total = trainer.global_step, total_steps(trainer)
    else:
        step, total = batches, total_batches(trainer, batches, trainer.global_step)
    return Progress(step, trainer.current_epoch, total, lr_ratio(optimizer))


def total_steps(trainer: pl.Trainer) -> int | None:
    """Steps of the whole training in automatic optimization; None if it has no known end."""
    try:
        total = trainer.estimated_stepping_batches
    except MisconfigurationException:  # The accumulation changes from epoch to epoch.
        total = math.inf
    return int(total) if 0 < total < math.inf else None


def total_batches(trainer: pl.Trainer, batches: int, steps: int) -> int | None:
    """Batches of the whole training in manual optimization; None if it has no known end.

    ``max_steps`` counts the steps of all optimizers, of which a batch may take any number: as many as so far.

    Args:
        trainer: the Trainer.
        batches: batches so far.
        steps: optimizer steps so far, ``trainer.global_step`` at the beginning of the batch.
    """
    limits = []
    if trainer.max_steps > 0:
        per_batch = steps / batches if batches and steps else len(trainer.optimizers)
        limits.append(trainer.max_steps / per_batch)
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and trainer.num_training_batches < math.inf:
        limits.append(trainer.max_epochs * trainer.num_training_batches)
    return max(1, round(min(limits))) if limits else None


def momentum_of(optimizer: Optimizer, param: Tensor) -> Tensor | None:
    """The running mean of gradients that the optimizer keeps for a parameter; None before its first step.

    Raises:
        ValueError: if it keeps something, and neither under the name ``momentum_buffer`` nor ``exp_avg``.
    """
    state = optimizer.state.get(param, {})
    for name in ("momentum_buffer", "exp_avg"):
        if name in state:
            momentum: Tensor | None = state[name]
            return momentum
    if state:
        raise ValueError(
            f"MomentumSAM perturbs along the momentum of {type(optimizer).__name__}, and that keeps"
            f" {', '.join(map(repr, state))}, but no 'momentum_buffer' or 'exp_avg'. Use torch's SGD with momentum,"
            " Adam or AdamW, or another rule."
        )
    return None
