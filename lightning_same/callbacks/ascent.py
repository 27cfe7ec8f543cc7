"""The perturbation that a monitor measures with."""

import lightning.pytorch as pl
from torch import Tensor

from lightning_same.rules.base import Rule
from lightning_same.rules.sam import SAM
from lightning_same.rules.schedules import value
from lightning_same.trainer.loop import batches_ended
from lightning_same.trainer.optimizers import progress_of, radii_of

RHO = 0.05
"""The radius on a module that does not train by a rule."""


def ascent(
    trainer: pl.Trainer, module: pl.LightningModule, rho: float | None
) -> tuple[Rule, dict[Tensor, float] | None]:
    """What perturbs the weights.

    Args:
        trainer: the Trainer.
        module: the module.
        rho: the radius of SAM's perturbation; None for the perturbation of the module's own rule, at its radius of the
            moment. A rule that needs more than g to perturb counts as SAM with its radius.

    Returns:
        The rule, and the radius of each parameter; None for the rule's own radius for all.
    """
    own = getattr(module, "sam", None)
    if rho is not None or not isinstance(own, Rule):
        return SAM(RHO if rho is None else rho), None
    radii: dict[Tensor, float] = {}
    batches = None if module.automatic_optimization else batches_ended(trainer)
    for optimizer in trainer.optimizers:
        radii |= radii_of(optimizer, value(own.rho, progress_of(trainer, optimizer, batches)))
    return SAM() if own.ahead or own.perturbation.stateful else own, radii
