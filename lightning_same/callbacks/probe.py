"""The two gradients of a model that trains as usual, computed beside its training without a trace."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_same.callbacks.noisy_samples import NoisyMask, Samples, clean_and_noisy
from lightning_same.gradients.grads import dense, set_grads
from lightning_same.gradients.graph import nodes
from lightning_same.gradients.pair import TwoGradients
from lightning_same.gradients.sharding import any_sharded
from lightning_same.replay.batch import copy_of
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.rules.sam import SAM
from lightning_same.trainer.distributed import ddp_model, sum_over_processes
from lightning_same.trainer.optimizers import trained
from lightning_same.trainer.precision import loss_scale
from lightning_same.trainer.training_step import check_loss, training_loss

LossFn = Callable[[pl.LightningModule, Any], Tensor]
"""Gives the loss of a module for a batch."""


class Probed(NamedTuple):
    """What `probe` returns.

    Attributes:
        whole: the two gradients of the batch.
        parts: for each mask, those of its ``"clean"`` and of its ``"noisy"`` samples, where there are any.
    """

    whole: TwoGradients
    parts: dict[NoisyMask, dict[str, TwoGradients]]


def check_probe(
    module: pl.LightningModule,
    trainer: pl.Trainer,
    loss_fn: LossFn | None,
    owner: str,
    parts: bool = False,
    curvature: bool = False,
    real: bool = True,
) -> None:
    """Check that a module can be probed.

    Args:
        module: the module.
        trainer: its Trainer.
        loss_fn: the loss, if it is not the training step's.
        owner: who wants to probe.
        parts: whether batches are to be cut into parts.
        curvature: whether second derivatives are to be taken.
        real: whether what is measured has no meaning for complex parameters.

    Raises:
        RuntimeError: names ``owner``, the cause and the way out.
    """
    name = type(module).__name__
    sharding = isinstance(trainer.strategy, ModelParallelStrategy)
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy) or (sharding and curvature):
        what = "whose second derivatives cannot be taken" if sharding else "which cannot be probed"
        raise RuntimeError(
            f"{owner}: {type(trainer.strategy).__name__} shards the parameters, {what}. Use"
            f' {"" if sharding or curvature else "ModelParallelStrategy or "}strategy="ddp", or leave the callback out.'
        )
    if sharding and parts:
        raise RuntimeError(
            f"{owner}: ModelParallelStrategy gives all processes the same weight, and not every process has as many"
            ' clean and noisy samples in every batch. Use strategy="ddp", or leave `noisy_mask` out.'
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
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    stepped_later = [param for group in groups for param in group["params"]]
    if real and any(param.is_complex() for param in [*stepped(trainer, module), *stepped_later]):
        raise RuntimeError(
            f"{owner}: {name} has complex parameters, which have no sign to split by and no real Hessian. Keep them as"
            " real ones, by torch.view_as_real, or leave the callback out."
        )
    if parts and any(isinstance(each, nn.SyncBatchNorm) for each in module.modules()):
        raise RuntimeError(
            f"{owner}: {name} has SyncBatchNorm layers, which mix the samples of all processes, while not every process"
            " has clean and noisy ones in every batch. Train with `sync_batchnorm=False`, or leave `noisy_mask` out."
        )


def probe(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    batch: Any,
    batch_idx: int,
    rho: float,
    loss_fn: LossFn | None = None,
    noisy_masks: Sequence[NoisyMask] = (),
) -> Probed | None:
    r"""The gradient of a batch at w and at w + rho * g / \|\|g\|\|, and those of its clean and noisy samples there.

    They are those of the parameters that the Trainer's optimizers step, as in a two-pass step. A parameter that the
    batch reaches on no process has no gradient, and is neither perturbed nor counted.

    All passes see the same random state and buffers. Afterwards weights, ``.grad``, buffers, random state, metrics,
    attributes and logs are bit for bit what they were. Costs two forward-backward passes, and for each mask four more,
    which see every sample twice.

    The clean and the noisy samples are cut out of the batch: every tensor in it whose first dimension is that of the
    mask, nested ones too, keeps the rows of one kind; everything else stays. Each kind goes through the training step
    as a batch of its own, at w and at the w + e of the *whole* batch. So for a loss that is a mean over samples, n g is
    the sum of n_clean g_clean and n_noisy g_noisy, and the same holds for s, except for layers that mix the samples of
    a batch, such as BatchNorm, and for the random draws of dropout.

    On several processes, the gradients of a kind are the means over its samples on all processes. A process without
    any still runs the training step, with its whole batch, to take part in collective operations. A process with a
    single sample of a kind leaves it out if the module has BatchNorm layers, which fail on one sample.

    Args:
        trainer: the Trainer.
        module: the module, at the start of a training batch.
        batch: the batch on the device.
        batch_idx: its index.
        rho: radius of the perturbation.
        loss_fn: the loss of ``(module, batch)``. Default: the module's training step.
        noisy_masks: functions that say which samples of the batch are noisy.

    Returns:
        The gradients, averaged over all processes; None if the training step returns None, or reaches no parameter.

    Raises:
        ValueError: if a mask is not a boolean vector, or no tensor in the batch is as long.
        RuntimeError: if DDP with a static graph meets a reentrant activation checkpoint.
    """
    params = stepped(trainer, module)
    scale = loss_scale(trainer, module.device)
    whole = Samples(batch, 1 / trainer.world_size)
    parts = [
        (mask, name, samples)
        for mask in noisy_masks
        for name, samples in clean_and_noisy(trainer, module, batch, mask).items()
    ]

    def mean_gradient(samples: Samples, ascent: Mapping[Tensor, Tensor] | None = None) -> dict[Tensor, Tensor] | None:
        """The gradient at w, or at the perturbed weights; None if the training step returns None for the batch."""
        before.restore()
        with nullcontext() if ascent is None else SAM(rho).perturbed([*ascent], [*ascent.values()]):
            # Without samples too: the forward or the backward may wait for the other processes.
            loss = probe_loss(trainer, module, copy_of(samples.batch), batch_idx, loss_fn)
            grads = None
            if loss is not None:
                loss = loss if samples.weight else loss * 0.0
                grads = derivatives(loss if scale is None else loss * scale, params, module)
        if grads is None and samples is whole and trainer.world_size == 1:
            return None
        return _mean(trainer, params, grads if samples.weight else None, samples.weight)

    with undisturbed(trainer, module) as before:
        base = mean_gradient(whole)
        base_of_parts = [mean_gradient(samples) for *_, samples in parts] if base else []
        perturbed = mean_gradient(whole, base) if base else None
        perturbed_of_parts = [mean_gradient(samples, base) for *_, samples in parts] if perturbed else []
    if not (base and perturbed):
        return None
    reached = [*base]

    def pair(grads: Mapping[Tensor, Tensor] | None, perturbed_grads: Mapping[Tensor, Tensor] | None) -> TwoGradients:
        aligned = [
            [known[param] if known and param in known else torch.zeros_like(param) for param in reached]
            for known in (grads, perturbed_grads)
        ]
        return TwoGradients(reached, aligned[0], aligned[1], scale)

    pairs: dict[NoisyMask, dict[str, TwoGradients]] = {}
    for (mask, name, _), g, s in zip(parts, base_of_parts, perturbed_of_parts, strict=True):
        pairs.setdefault(mask, {})[name] = pair(g, s)
    return Probed(pair(base, perturbed), pairs)


def stepped(trainer: pl.Trainer, module: nn.Module) -> list[Tensor]:
    """The parameters that the Trainer's optimizers step; without an optimizer, all that can be trained."""
    params = dict.fromkeys(param for optimizer in trainer.optimizers for param in trained(optimizer))
    return [*params] or [param for param in module.parameters() if param.requires_grad]


def derivatives(loss: Tensor, params: Sequence[Tensor], module: nn.Module) -> Sequence[Tensor | None]:
    """The gradient of a loss, dense, which leaves ``.grad`` as it is; of sharded parameters the processes' mean."""
    sharded = any_sharded(params)
    if not (sharded or _recomputes(loss)):
        # Not `.backward`, which would fill `.grad` and drive DDP's reducer. A training step may have frozen some.
        reached = [param for param in params if param.requires_grad]
        grads = dict(zip(reached, torch.autograd.grad(loss, reached, allow_unused=True), strict=True))
        return [_dense(grads.get(param)) for param in params]
    # FSDP2 spreads gradients over the processes where `.backward` leaves them, and nowhere else; and so do the
    # checkpoints that call `.backward` in their own. DDP's reducer listens only after a forward of its wrapper.
    leaves = dict.fromkeys([*module.parameters(), *params])
    kept = {param: param.grad for param in leaves}
    set_grads(dict.fromkeys(leaves))
    try:
        with nullcontext() if sharded else _without_hooks(leaves):
            loss.backward()  # type: ignore[no-untyped-call]
        return [_dense(param.grad) for param in params]
    finally:
        set_grads(kept)


def _dense(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else dense(grad)


def _recomputes(loss: Tensor) -> bool:
    """Whether an activation checkpoint lies in the graph that hides from it what it calls (``use_reentrant=True``)."""
    return any("CheckpointFunction" in node.name() for node in nodes(loss))


@contextmanager
def _without_hooks(params: Iterable[Tensor]) -> Iterator[None]:
    """No hook of the user's hears that a gradient is there: it might step an optimizer."""
    kept = [(hooks, dict(hooks)) for param in params if (hooks := param._post_accumulate_grad_hooks)]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, items in kept:
            hooks.update(items)


def probe_loss(
    trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int, loss_fn: LossFn | None
) -> Tensor | None:
    """The loss of a batch; None if the training step returns None."""
    with torch.enable_grad(), trainer.precision_plugin.train_step_context():
        loss = training_loss(module, batch, batch_idx) if loss_fn is None else loss_fn(module, batch)
    if loss is None:
        return None
    check_loss(loss, f"{type(module).__name__}.training_step" if loss_fn is None else "`loss_fn`")
    ddp = ddp_model(trainer)
    if ddp is not None and ddp.static_graph and _recomputes(loss):
        raise RuntimeError(
            f"{type(module).__name__} has activation checkpoints with `use_reentrant=True`, whose gradients cannot"
            " be measured beside DDP's `static_graph=True`. Use `use_reentrant=False`."
        )
    return loss


def _mean(
    trainer: pl.Trainer, params: Sequence[Tensor], grads: Sequence[Tensor | None] | None, weight: float
) -> dict[Tensor, Tensor]:
    """The weighted mean over processes, by one collective operation, of the parameters that have a gradient on any.

    None for all of them counts as nothing: a training step may have returned None on some processes.
    """
    if grads is not None and (trainer.world_size == 1 or any_sharded(params)):
        return {param: grad for param, grad in zip(params, grads, strict=True) if grad is not None}
    if grads is None:
        grads, weight = [None] * len(params), 0.0
    full = [torch.zeros_like(param) if grad is None else grad for param, grad in zip(params, grads, strict=True)]
    flat = torch.cat([grad.reshape(-1) for grad in full])
    counts = flat.new_tensor([1.0, *(float(grad is not None) for grad in grads)])
    flat = torch.cat([counts, flat]).to(torch.promote_types(flat.dtype, torch.float32)) * weight
    flat = sum_over_processes(trainer, flat)
    total, *known = flat[: len(counts)].tolist()
    if not total:
        return {}
    parts = torch.split(flat[len(counts) :] / total, [param.numel() for param in params])
    means = zip(params, parts, known, strict=True)
    return {param: part.view_as(param).to(param.dtype) for param, part, somewhere in means if somewhere}
