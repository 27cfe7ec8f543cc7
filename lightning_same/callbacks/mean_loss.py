"""The mean loss of a module on fixed batches, for measures that need it without a trace in training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_same.callbacks.probe import LossFn
from lightning_same.curvature.differentiable import dense_embeddings
from lightning_same.curvature.samples import leading_dimension
from lightning_same.replay.batch import copy_of
from lightning_same.replay.snapshot import Snapshot
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.trainer.distributed import take_buffers_of_rank_zero
from lightning_same.trainer.precision import full_precision
from lightning_same.trainer.training_step import check_loss, training_loss

Mode = Literal["eval", "train"]


@contextmanager
def mean_loss(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    batches: Sequence[Any],
    loss_fn: LossFn | None = None,
    samples_fn: Callable[[Any], int] | None = None,
    mode: Mode = "eval",
    owner: str = "sharpness",
) -> Iterator[dict[str, Any]]:
    """A module's mean loss on batches, to be measured in a ``with`` block that leaves no trace.

    Every forward sees the same random numbers and buffers, which are those of rank zero on all processes. Afterwards
    weights, ``.grad``, buffers, random state, metrics, attributes, modes and logs are bit for bit what they were.

    Args:
        trainer: the module's Trainer.
        module: the module, itself and not its wrapper.
        batches: on the module's device; they are not changed.
        loss_fn: mean loss of ``(module, batch)``. Default: the module's training step.
        samples_fn: number of samples of a batch. Default: the leading dimension of its tensors.
        mode: "eval", or "train" for the modes that the submodules are in.
        owner: for error messages.

    Yields:
        The arguments of `Hessian`.
    """
    source = f"{owner}: `loss_fn`" if loss_fn is not None else f"{owner}: {type(module).__name__}.training_step"
    weights = [param for param in module.parameters() if param.requires_grad]

    def loss(batch: Any) -> Tensor:
        # The weights stay as they are: they may be perturbed while the loss is measured.
        at_each_forward.restore()
        copy = copy_of(batch)
        # With gradients even where only the value is asked for: the step may take some.
        with full_precision(trainer, module), torch.enable_grad():
            value = training_loss(module, copy, 0) if loss_fn is None else loss_fn(module, copy)
        for param in weights:  # What the step has frozen has a derivative of 0.
            param.requires_grad_()
        return check_loss(value, source)

    with undisturbed(trainer, module), dense_embeddings(module):
        take_buffers_of_rank_zero(trainer, module)
        # The modes are set by whoever measures.
        at_each_forward = Snapshot(module, weights, module.device, modes=False)
        yield {
            "loss_fn": loss,
            "params": module if mode == "eval" else weights,
            "batches": batches,
            "samples": _samples(trainer, batches, samples_fn, owner),
            "reduce": None if trainer.world_size == 1 else partial(trainer.strategy.reduce, reduce_op="sum"),
        }


def _samples(
    trainer: pl.Trainer, batches: Sequence[Any], samples_fn: Callable[[Any], int] | None, owner: str
) -> list[int]:
    """The number of samples of each batch, by which it weighs.

    Raises:
        ValueError: if it cannot be told; names ``owner`` and ``samples_fn``.
    """
    if samples_fn is not None:
        return [samples_fn(batch) for batch in batches]
    try:
        return [leading_dimension(batch) for batch in batches]
    except ValueError as error:
        if len(batches) == 1 and trainer.world_size == 1:
            return [1]  # The weight of an only batch cancels.
        raise ValueError(
            f"{owner}: the number of samples in a batch of type {type(batches[0]).__name__} is unclear. Give"
            " `samples_fn(batch)`, which returns it."
        ) from error
