"""The two gradients of a model that trains as usual, taken beside its training and without a trace in it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_same.refusals import checked_loss
from lightning_same.replay import Snapshot, copy_of
from lightning_same.rules import SAM
from lightning_same.silence import muted_loggers

LossFn = Callable[[pl.LightningModule, Any], Tensor]


class TwoGradients(NamedTuple):
    """One tensor for each trainable parameter.

    Attributes:
        grads: g at w.
        perturbed_grads: s at w + e.
    """

    grads: list[Tensor]
    perturbed_grads: list[Tensor]


def refuse_probe(module: pl.LightningModule, trainer: pl.Trainer, loss_fn: LossFn | None, owner: str) -> None:
    """Check that a module can be probed.

    Raises:
        RuntimeError: names ``owner``, the cause and the way out.
    """
    name = type(module).__name__
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise RuntimeError(
            f"{owner}: {type(trainer.strategy).__name__} shards the parameters, which cannot be probed yet. Use"
            ' strategy="ddp", or leave the callback out.'
        )
    if loss_fn is None and not module.automatic_optimization:
        raise RuntimeError(
            f"{owner}: {name} is in manual optimization, where training_step steps by itself and cannot be asked for a"
            " loss. Give the callback a `loss_fn(module, batch)` that returns it."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise RuntimeError(
            f"{owner}: {name}.training_step takes `dataloader_iter`, and an iterator cannot be replayed. Let it take"
            " `batch`."
        )


def two_gradients(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    batch: Any,
    batch_idx: int,
    rho: float,
    loss_fn: LossFn | None = None,
) -> TwoGradients | None:
    r"""The gradient of a batch at w and at w + rho * g / \|\|g\|\|.

    Both passes see the same random numbers and buffers. Afterwards weights, ``.grad``, buffers, random state, metrics,
    attributes and logs are bit for bit what they were. Costs two forward-backward passes.

    Args:
        trainer: the Trainer.
        module: the module, at the start of a training batch.
        batch: the batch on the device.
        batch_idx: its index.
        rho: radius of the perturbation.
        loss_fn: the loss of ``(module, batch)``. Default: the module's training step.

    Returns:
        The gradients, averaged over all processes; None if the training step returns None.
    """
    params = [param for param in module.parameters() if param.requires_grad]

    def gradient() -> list[Tensor] | None:
        given = copy_of(batch)
        with torch.enable_grad(), trainer.precision_plugin.train_step_context():
            loss = training_loss(module, given, batch_idx) if loss_fn is None else loss_fn(module, given)
        if loss is None:
            return None
        checked_loss(loss, f"{type(module).__name__}.training_step" if loss_fn is None else "`loss_fn`")
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # Not `.backward`, which would fill `.grad` and drive DDP's reducer.
        found = torch.autograd.grad(loss if scaler is None else scaler.scale(loss), params, allow_unused=True)
        return _mean(trainer, [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)])

    with muted(module), muted_loggers(trainer):
        # With no parameter left out: a training step may write to any of them.
        before = Snapshot(module, device=module.device)
        try:
            grads = gradient()
            if grads is None:
                return None
            before.restore()
            with SAM(rho).perturbed(params, grads):
                perturbed_grads = gradient()
        finally:
            before.restore()
    return None if perturbed_grads is None else TwoGradients(grads, perturbed_grads)


def training_loss(module: pl.LightningModule, batch: Any, batch_idx: int) -> Any:
    """The loss that a module's training step returns for a batch."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    output = module.training_step(batch, batch_idx) if takes_index else module.training_step(batch)
    return output["loss"] if isinstance(output, dict) else output


def _mean(trainer: pl.Trainer, grads: list[Tensor]) -> list[Tensor]:
    """The mean over processes, by one collective operation."""
    if trainer.world_size == 1:
        return grads
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    mean = trainer.strategy.reduce(flat, reduce_op="mean")
    parts: Sequence[Tensor] = torch.split(mean, [grad.numel() for grad in grads])
    return [part.view_as(grad).to(grad.dtype) for part, grad in zip(parts, grads, strict=True)]


@contextmanager
def muted(module: pl.LightningModule) -> Iterator[None]:
    """Nothing that the module logs or prints is seen."""
    names = ("log", "print")
    hidden = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        for name in names:
            object.__setattr__(module, name, _nothing)
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(hidden)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
