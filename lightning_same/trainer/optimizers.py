"""What the passes ask of an optimizer, and of the Trainer that steps it."""

import math

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

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


def lr_ratio(optimizer: Optimizer) -> float:
    """The learning rate of the first group, as a share of its peak."""
    group = optimizer.param_groups[0]
    lr = float(group.get("lr", 1.0))
    peak = float(group.get("max_lr", group.get("initial_lr", lr)))
    return lr / peak if peak else 0.0


def progress_of(trainer: pl.Trainer, step: int, optimizer: Optimizer) -> Progress:
    """How far training has come when step ``step`` of an optimizer begins."""
    try:
        total = trainer.estimated_stepping_batches
    except MisconfigurationException:  # The accumulation changes from epoch to epoch.
        total = math.inf
    return Progress(step, trainer.current_epoch, int(total) if 0 < total < math.inf else None, lr_ratio(optimizer))


def momentum_of(optimizer: Optimizer, param: Tensor) -> Tensor | None:
    """The running mean of gradients that the optimizer keeps for a parameter; None before its first step."""
    state = optimizer.state.get(param, {})
    momentum: Tensor | None = state.get("momentum_buffer", state.get("exp_avg"))
    return momentum
