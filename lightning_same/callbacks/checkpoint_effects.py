"""Which samples the gradient in a checkpoint comes from, and which samples' loss a step along it lowers."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_same.callbacks.ascent import ascent
from lightning_same.callbacks.cadence import Cadence
from lightning_same.callbacks.monitor import Monitor
from lightning_same.callbacks.noisy_samples import NoisyMask
from lightning_same.callbacks.probe import LossFn, check_probe, stepped
from lightning_same.curvature.differentiable import evaluated
from lightning_same.gradients.effects import (
    GROUPS,
    Effects,
    amplifications,
    checkpoint_effects,
    dominated_shares,
    noisy_shares,
    placebo_effects,
)
from lightning_same.gradients.grads import dense
from lightning_same.gradients.random_masks import draws_of
from lightning_same.replay.batch import copy_of
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.rules.settings import check_int, check_number
from lightning_same.trainer.distributed import sum_over_processes, take_buffers_of_rank_zero
from lightning_same.trainer.loop import is_accumulating, opens_window, steps_logged
from lightning_same.trainer.precision import loss_scale

LossesFn = Callable[[pl.LightningModule, Any], Tensor]
"""Gives the loss of each sample of a batch, of shape (n,)."""

Parts = dict[str, list[Tensor]]
"""The gradients of the ``clean`` and of the ``noisy`` samples, which sum up to that of the batch."""


class CheckpointEffectMonitor(Monitor):
    r"""Logs what a step along each of the four checkpoints does to clean samples, to noisy ones and on validation data.

    The checkpoints are those of the whole batch's g and s. g_clean is the gradient of the clean samples' part of the
    batch's mean loss. It is computed by weighting the samples' losses within one forward pass. So g = g_clean + g_noisy
    and s = s_clean + s_noisy hold exactly, also with dropout and with layers that mix samples.

    All of it is measured beside the training, on modules with and without a rule, and leaves no trace: training stays
    bit for bit what it is without the callback, if `training_step` can be replayed (see `ReplayCheck`). It costs two
    forward and four backward passes of the batch, and one of each for every validation batch. Under DDP all gradients
    are averaged over the processes first, so every rank holds the same value. Where gradients accumulate, the first
    batch of the window is measured. Compiled modules run eagerly.

    Logged, with s_k for s on checkpoint k and 0 elsewhere:
        - ``ckpt_effect/ckptK/clean``, ``/noisy``, ``/validation``: <s_k, g_X> / \|\|s_k\|\|, the first-order decrease
          of that loss along a step of length one; below 0 it rises. ``ckpt_effect/rest`` and ``ckpt_effect/whole`` are
          the same for the rest and for all of s.
        - ``ckpt_share/ckptK/noisy``: <s_k, s_noisy> / \|\|s_k\|\|^2, the share of s_k that comes from noisy samples.
        - ``ckpt_placebo_count/ckptK/...``, ``ckpt_placebo_norm/ckptK/...``: the effects of a random set of elements, as
          many or with as large a norm of s.
        - ``ckpt_amplification/clean_dominated/whole``, ``/clean``, ``/noisy``: the sum of \|s\| over that of \|g\| on
          the elements with \|g_clean\| > \|g_noisy\|, for the batch and its clean and noisy samples;
          ``ckpt_amplification/noisy_dominated/...`` on those with \|g_noisy\| > \|g_clean\|.
        - ``ckpt_dominated/ckptK/noisy``: the share of the checkpoint's elements with \|g_noisy\| > \|g_clean\|.

    The validation loss is that of the first batches that the validation loop has seen, in evaluation mode. Before that,
    its values are not logged.

    Args:
        every_n_steps: measure, and log, at every n-th step, the first included. Default: the Trainer's
            ``log_every_n_steps``.
        every_n_epochs: measure the first step of every n-th epoch instead, the first epoch included.
        losses_fn: the loss of each sample of ``(module, batch)``, of shape (n,); their mean is the training loss.
            Default: the module's own ``losses(batch)``.
        noisy_mask: which samples of ``batch`` are noisy, a boolean tensor of shape (n,). Default: ``batch.noisy``.
        validation_batches: how many batches of the first validation loader to keep; 0 for none.
        rho: radius of SAM's perturbation. Default: the rule's own perturbation on a module that trains by one without a
            memory, else 0.05.
        placebo_seed: of the random sets.
        name: becomes part of the keys, as in ``ckpt_effect/NAME/ckpt1/clean``, for several monitors in one training.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Luong et al., Understanding SAM's Robustness to Noisy Labels through Gradient Down-weighting, arXiv:2411.17132.
    """

    keys_begin_with = "ckpt_effect"

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        losses_fn: LossesFn | None = None,
        noisy_mask: NoisyMask | None = None,
        validation_batches: int = 1,
        rho: float | None = None,
        placebo_seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.cadence = Cadence(self, every_n_steps, every_n_epochs)
        for option, function in {"losses_fn": losses_fn, "noisy_mask": noisy_mask}.items():
            if function is not None and not callable(function):
                raise ValueError(f"CheckpointEffectMonitor: `{option}` must be a function, got {function!r}.")
        self.losses_fn = losses_fn
        self.noisy_mask = noisy_mask
        self.validation_batches = check_int(self, "validation_batches", validation_batches, at_least=0)
        self.rho = None if rho is None else check_number(self, "rho", rho, above=0)
        self.placebo_seed = check_int(self, "placebo_seed", placebo_seed, at_least=0)
        self._kept: list[Any] = []
        self._values: dict[str, Tensor] = {}

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._values.clear()
        self._kept.clear()
        if self.losses_fn is None and not callable(getattr(type(pl_module), "losses", None)):
            raise RuntimeError(
                f"CheckpointEffectMonitor: {type(pl_module).__name__} has no `losses(batch)`, which gives the loss of"
                " each sample. Write one, or give the callback a `losses_fn(module, batch)`."
            )
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise RuntimeError(
                "CheckpointEffectMonitor: ModelParallelStrategy shards the parameters, whose gradients cannot be taken"
                ' by parts. Use strategy="ddp", or leave the callback out.'
            )
        as_loss: LossFn = lambda module, batch: self._losses(module, batch).mean()  # noqa: E731
        check_probe(pl_module, trainer, as_loss, "CheckpointEffectMonitor")

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        is_wanted = dataloader_idx == 0 and batch_idx == len(self._kept) < self.validation_batches
        if is_wanted and trainer.state.fn == TrainerFn.FITTING:
            with torch.inference_mode(False):  # a tensor made in it takes no part in a backward pass
                self._kept.append(copy_of(batch))

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if opens_window(trainer) and self.cadence.measures_step(trainer):
            self._values = self._measured(trainer, pl_module, batch)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._values and not is_accumulating(trainer):
            values, self._values = self._values, {}
            self._log(trainer, values)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._kept.clear()  # or they would stay on the device

    def _measured(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> dict[str, Tensor]:
        params = stepped(trainer, module)
        rule, radius_of = ascent(trainer, module, self.rho)
        radii = None if radius_of is None else [radius_of.get(param, 0.0) for param in params]
        # A compiled backward runs once only, and two parts of one forward take two.
        with undisturbed(trainer, module) as before, torch.compiler.set_stance("force_eager"):
            base = self._parts(trainer, module, batch, params)
            grads = _sum(base)
            before.restore()
            with rule.perturbed(params, grads, radii):
                perturbed = self._parts(trainer, module, batch, params)
            perturbed_grads = _sum(perturbed)
            losses = dict(base)
            # Validation data may be of another length on each process.
            kept = torch.tensor(float(len(self._kept)), device=module.device)
            if sum_over_processes(trainer, kept).item():
                before.restore()
                take_buffers_of_rank_zero(trainer, module)
                losses["validation"] = self._validation(trainer, module, params)
        values: dict[str, Tensor] = {}
        effects = checkpoint_effects(grads, perturbed_grads, losses)
        values |= _by_group("ckpt_effect", effects, GROUPS)
        whole = Effects({name: dot.sum(0, True) for name, dot in effects.dots.items()}, effects.squares.sum(0, True))
        values |= _by_group("ckpt_effect", whole, ["whole"])
        draws = draws_of(self.placebo_seed, steps_logged(trainer))
        for match in "count", "norm":
            placebo = placebo_effects(grads, perturbed_grads, losses, match, draws)
            values |= _by_group(f"ckpt_placebo_{match}", placebo, GROUPS[:4])
        shares = noisy_shares(grads, perturbed_grads, perturbed["noisy"])
        dominated = dominated_shares(grads, perturbed_grads, base["clean"], base["noisy"])
        for name, share, part in zip(GROUPS[:4], shares, dominated, strict=False):
            values |= {f"ckpt_share/{name}/noisy": share, f"ckpt_dominated/{name}/noisy": part}
        both = amplifications((base["clean"], perturbed["clean"]), (base["noisy"], perturbed["noisy"]))
        for where, amplification in both.items():
            values |= {f"ckpt_amplification/{where}/{of}": size for of, size in amplification._asdict().items()}
        return values

    def _parts(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, params: Sequence[Tensor]) -> Parts:
        """The gradients of the clean and of the noisy samples' part of the batch's mean loss, out of one forward."""
        batch = copy_of(batch)
        noisy = self._noisy(batch)
        with torch.enable_grad(), trainer.precision_plugin.train_step_context():
            losses = self._losses(module, batch)
        if noisy.shape != losses.shape:
            raise ValueError(
                "CheckpointEffectMonitor: `noisy_mask` and `losses_fn` must give one value for each sample, got shapes"
                f" {tuple(noisy.shape)} and {tuple(losses.shape)}."
            )
        found: Parts = {}
        for name, mask in {"clean": ~noisy, "noisy": noisy}.items():
            loss = (losses * mask.to(losses)).sum() / len(losses)
            own = _own_gradient(trainer, module, loss, params, keep=name == "clean")
            found[name] = [total / trainer.world_size for total in _summed(trainer, own)]
        return found

    def _validation(self, trainer: pl.Trainer, module: pl.LightningModule, params: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of the mean loss over the validation samples of all processes, in evaluation mode."""
        total, samples = [torch.zeros_like(param) for param in params], 0
        with evaluated(module):
            for kept in self._kept:
                with torch.enable_grad(), trainer.precision_plugin.train_step_context():
                    losses = self._losses(module, copy_of(kept))
                torch._foreach_add_(total, _own_gradient(trainer, module, losses.sum(), params))
                samples += len(losses)
        count = torch.tensor([float(samples)], device=module.device)
        *total, count = _summed(trainer, [*total, count])
        torch._foreach_div_(total, count.item())
        return total

    def _losses(self, module: pl.LightningModule, batch: Any) -> Tensor:
        losses: Any = self.losses_fn(module, batch) if self.losses_fn else module.losses(batch)  # type: ignore[operator]
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else repr(losses)
            raise ValueError(
                f"CheckpointEffectMonitor: `losses_fn` must return the loss of each sample, of shape (n,), got {got}."
            )
        return losses

    def _noisy(self, batch: Any) -> Tensor:
        noisy = self.noisy_mask(batch) if self.noisy_mask else getattr(batch, "noisy", None)
        if not (isinstance(noisy, Tensor) and noisy.dtype == torch.bool and noisy.dim() == 1):
            got = f"{noisy.dtype} of shape {tuple(noisy.shape)}" if isinstance(noisy, Tensor) else repr(noisy)
            raise ValueError(
                "CheckpointEffectMonitor: `noisy_mask`, or else `batch.noisy`, must be a boolean tensor with one"
                f" element per sample, got {got}."
            )
        return noisy


def _own_gradient(
    trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor, params: Sequence[Tensor], keep: bool = False
) -> list[Tensor]:
    """The gradient of a loss of this process, which leaves ``.grad`` as it is; 0 where it does not reach."""
    scale = loss_scale(trainer, module.device)
    grads = torch.autograd.grad(
        loss if scale is None else loss * scale, params, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return [dense(grad if scale is None else grad / scale) for grad in grads]


def _summed(trainer: pl.Trainer, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over the processes, of tensors that have the same shapes on all of them."""
    if trainer.world_size == 1:
        return list(tensors)
    flat = sum_over_processes(trainer, torch.cat([tensor.flatten() for tensor in tensors]))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _sum(parts: Parts) -> list[Tensor]:
    return [clean + noisy for clean, noisy in zip(parts["clean"], parts["noisy"], strict=True)]


def _by_group(key: str, effects: Effects, names: Sequence[str]) -> dict[str, Tensor]:
    return {
        f"{key}/{name}/{loss}": size
        for loss, sizes in effects.per_unit().items()
        for name, size in zip(names, sizes, strict=False)
    }
