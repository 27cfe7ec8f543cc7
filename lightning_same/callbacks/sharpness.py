"""How sharp the loss is while a model trains: when to measure it, and what to log."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_same.callbacks.cadence import Cadence
from lightning_same.callbacks.mean_loss import Mode, mean_loss
from lightning_same.callbacks.probe import LossFn, check_probe
from lightning_same.curvature.adaptive import AdaptiveHessian
from lightning_same.curvature.eigenvalues import extreme_eigenvalues, reason
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.neighborhood import average_case_sharpness, worst_case_sharpness
from lightning_same.replay.batch import copy_of
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.rules.base import Rule
from lightning_same.rules.sam import SAM
from lightning_same.rules.schedules import value
from lightning_same.rules.settings import check_int, check_number
from lightning_same.trainer.logging import log_now
from lightning_same.trainer.loop import steps_logged
from lightning_same.trainer.optimizers import progress_of, radii_of
from lightning_same.trainer.precision import full_precision
from lightning_same.trainer.training_step import batch_on_device, training_loss

EVERY_N_STEPS = 500
"""In later training a measurement costs the median of 20 training steps, which is then 4 % of the training."""


class SharpnessMonitor(Callback):
    r"""Logs the extreme eigenvalues of the loss's Hessian, and the rise of the loss to the perturbed weights.

    Measured on the same batches throughout, so that the curve shows the weights' change and not the batches'. Training
    is bit for bit what it is without the callback, if `training_step` can be replayed (see `ReplayCheck`). Autocast is
    off: under mixed precision the float32 weights are measured in float32. Under DDP the loss is the mean over the
    samples of all processes, every rank holds the same values, and each product adds one all-reduce.

    Costs about 20 forward-backward passes in the median of later training, and 40 to 70 in the first steps, where the
    spectrum is crowded. Meanwhile it holds as many copies of the weights as products are taken.

    Logged:
        ``sharpness/top_eigenvalue``, ``sharpness/bottom_eigenvalue``: as `top_eigenvalue` finds them.
        ``sharpness/residual``, ``sharpness/bottom_residual``: an eigenvalue lies within this distance of the largest,
        and of the smallest.
        ``sharpness/rounding``: estimate of the error by rounding, which the residuals include.
        ``sharpness/upper_bound``: with a probability of 99% no eigenvalue is larger.
        ``sharpness/hvps``: Hessian-vector products taken.
        ``sharpness/converged``: 1 or 0, of all eigenvalues. Where it is 0 a warning is given too.
        ``sharpness/ascent_gap``: L(w + e) - L(w).
        ``sharpness/adaptive_top_eigenvalue``, ``sharpness/worst_case``, ``sharpness/average_case``: if asked for.

    A training batch for which the training step returns None is passed over, with a warning.

    Args:
        every_n_steps: measure at every n-th optimizer step, before it is taken, the first included. Default: 500, if
            ``every_n_epochs`` is not given either.
        every_n_epochs: measure at the end of every n-th epoch instead.
        probe_batches: how many of the first training batches to measure on; they stay on the device. With more than one
            the first measurement waits for them. The batches are not in checkpoint files: a resumed training takes new
            ones, and its curve has a joint there. Or the batches themselves, such as ``list(islice(loader, 4))``; under
            DDP each process gives its own.
        loss_fn: gives the mean loss of ``(module, batch)``. Default: the module's training step; a module in manual
            optimization needs one.
        samples_fn: gives the number of samples (or tokens: what the loss is a mean over) of a batch, by which batches
            weigh. Default: the leading dimension of its tensors.
        rho: length of e = rho * g / \|\|g\|\|, g being the gradient on the same batches. Default: e is that of the
            module's rule, at its radius of the moment, for rules that make e of g alone; for the others it is SAM's at
            their radius. On a module without a rule 0.05.
        mode: "eval" measures with BatchNorm's running statistics and without dropout, "train" with the modules in
            whatever mode they train in. They are different losses, whose curvatures are not to be compared.
        track: start each search near the last eigenvector, which saves a product or two where measurements are close
            together. An eigenvalue that overtakes is found all the same: see `top_eigenvalue`.
        tolerance: accepted residual, relative to the eigenvalue.
        both_ends: wait for the smallest eigenvalue too, which takes 2 to 7 times as many products.
        max_products: most products for an eigenvalue.
        confident: go on until the upper bound is within the tolerance too: 2 to 4 products more.
        dtype: "float64" measures copies in float64; "auto" only where rounding exceeds the tolerance, as late in
            training with cross-entropy: see `Hessian`. Default: the dtype of the module.
        adaptive: measure the largest eigenvalue of `AdaptiveHessian` too, which does not change when weights are
            rescaled without changing the function. As many products again.
        worst_case: radius of the ball, in units of the weights, for `worst_case_sharpness`: 22 forward-backward passes.
        average_case: standard deviation, in units of the weights, for `average_case_sharpness`: 33 forward passes.
        seed: of the random start.
        prog_bar: show the largest eigenvalue in the progress bar too, as ``top_eigenvalue``.

    Raises:
        ValueError: if an option is out of range, or ``every_n_steps`` and ``every_n_epochs`` are both given.
    """

    shown: ClassVar = {"sharpness/top_eigenvalue": "top_eigenvalue"}

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        probe_batches: int | Sequence[Any] = 1,
        loss_fn: LossFn | None = None,
        samples_fn: Callable[[Any], int] | None = None,
        rho: float | None = None,
        mode: Mode = "eval",
        track: bool = False,
        tolerance: float = 2e-3,
        both_ends: bool = False,
        max_products: int = 32,
        confident: bool = False,
        dtype: Literal["float64", "auto"] | None = None,
        adaptive: bool = False,
        worst_case: float | None = None,
        average_case: float | None = None,
        seed: int = 0,
        prog_bar: bool = False,
    ) -> None:
        self.cadence = Cadence(self, every_n_steps, every_n_epochs, default_steps=EVERY_N_STEPS)
        counts = {"max_products": max_products}
        if not isinstance(probe_batches, Sequence):
            counts["probe_batches"] = probe_batches
        elif not probe_batches:
            raise ValueError("SharpnessMonitor: `probe_batches` holds no batch.")
        for name, count in counts.items():
            check_int(self, name, count, at_least=1)
        for name, radius in (("rho", rho), ("worst_case", worst_case), ("average_case", average_case)):
            if radius is not None:
                check_number(self, name, radius, above=0)
        if dtype not in (None, "float64", "auto"):
            raise ValueError(f'SharpnessMonitor: `dtype` must be "float64", "auto" or None, got {dtype!r}.')
        if mode not in get_args(Mode):
            raise ValueError(f'SharpnessMonitor: `mode` must be "eval" or "train", got {mode!r}.')
        self.probe_batches = probe_batches
        self.loss_fn = loss_fn
        self.samples_fn = samples_fn
        self.rho = rho
        self.mode: Mode = mode
        self.track = track
        self.tolerance = check_number(self, "tolerance", tolerance, above=0)
        self.both_ends = both_ends
        self.max_products = max_products
        self.confident = confident
        self.dtype: Literal["float64", "auto"] | None = dtype
        self.adaptive = adaptive
        self.worst_case = worst_case
        self.average_case = average_case
        self.seed = seed
        self.prog_bar = prog_bar
        self._batches: list[Any] = []
        self._vector: Tensor | None = None
        self._measured = False
        self._warned = False
        self._last_step: int | None = None
        self._loaded_step: int | None = None

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_probe(pl_module, trainer, self.loss_fn, "SharpnessMonitor", curvature=True)
        self._batches, self._vector, self._measured = [], None, False
        if not isinstance(self.probe_batches, int):
            with undisturbed(trainer, pl_module):  # A module may augment what it moves.
                self._batches = [batch_on_device(trainer, pl_module, batch) for batch in self.probe_batches]
        self._last_step, self._loaded_step = self._loaded_step, None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(self.probe_batches, int) and self.probe_batches > trainer.num_training_batches:
            raise ValueError(
                f"SharpnessMonitor: `probe_batches` is {self.probe_batches}, but an epoch has only"
                f" {trainer.num_training_batches} training batches."
            )

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(self.probe_batches, int) and len(self._batches) < self.probe_batches:
            self._batches.append(copy_of(batch))
        if self._ready() and self.cadence.is_overdue(trainer, self._last_step):
            self._measure(trainer, pl_module, steps_logged(trainer))
            if self._ready():
                self._last_step = steps_logged(trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._ready() and self.cadence.measures_epoch_end(trainer):
            # The step under which Lightning logs what belongs to the epoch that has ended.
            self._measure(trainer, pl_module, steps_logged(trainer) - 1)
        if not self._ready() and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"SharpnessMonitor: nothing is measured yet. `probe_batches` is {self.probe_batches}, and the epoch had"
                f" only {len(self._batches)} batches with a loss. The next epoch's are taken too, if there is one."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded_step = state_dict["last_step"]

    def _ready(self) -> bool:
        """Whether all batches are there. Their number is the same on all processes, so all measure together."""
        return not isinstance(self.probe_batches, int) or len(self._batches) == self.probe_batches

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if self.loss_fn is None and not all(having := self._with_a_loss(trainer, module)):
            waits = isinstance(self.probe_batches, int) and not self._measured
            if waits:
                self._batches = [batch for batch, has in zip(self._batches, having, strict=True) if has]
            rank_zero_warn(
                f"SharpnessMonitor: {type(module).__name__}.training_step returns None for a probe batch. "
                + ("The next training batch takes its place." if waits else "This measurement is left out.")
            )
            return
        self._measured = True
        with mean_loss(
            trainer, module, self._batches, self.loss_fn, self.samples_fn, self.mode, "SharpnessMonitor"
        ) as loss:
            hessian = Hessian(**loss, dtype=self.dtype)
            row = self._curvature(hessian, self.seed + trainer.global_step if self.track else self.seed)
            row["sharpness/ascent_gap"] = self._ascent_gap(trainer, module, hessian)  # It invalidates the graph.
            row |= self._neighborhood(hessian)
        log_now(trainer, row, step=step, prog_bar=self.shown if self.prog_bar else None)

    def _curvature(self, hessian: Hessian, seed: int) -> dict[str, float]:
        """The eigenvalues, and what is known of their errors."""
        options = (self.tolerance, self.both_ends, self.max_products, seed)
        top = extreme_eigenvalues(hessian, *options, self._vector, self.confident)
        self._vector = top.vector if self.track else None
        results = [top]
        if self.adaptive:
            results.append(extreme_eigenvalues(AdaptiveHessian(hessian), *options, confident=self.confident))
        row = {
            "sharpness/top_eigenvalue": top.value,
            "sharpness/bottom_eigenvalue": top.bottom,
            "sharpness/residual": top.residual,
            "sharpness/bottom_residual": top.bottom_residual,
            "sharpness/rounding": top.rounding,
            "sharpness/upper_bound": top.upper,
            "sharpness/hvps": float(sum(result.hvps for result in results)),
            "sharpness/converged": float(all(result.converged for result in results)),
        }
        if self.adaptive:
            row["sharpness/adaptive_top_eigenvalue"] = results[1].value
        for result in results:
            if not result.converged:
                rank_zero_warn(
                    "SharpnessMonitor: a measurement has not converged, or is not finite; it is logged with"
                    f" sharpness/converged = 0. `max_products` is {self.max_products}, `tolerance` {self.tolerance:g}:"
                    f" {reason(result, self.tolerance)}"
                )
        return row

    def _neighborhood(self, hessian: Hessian) -> dict[str, float]:
        """How much the loss rises around the weights, in units of the weights."""
        row = {}
        if self.worst_case is not None:
            row["sharpness/worst_case"] = worst_case_sharpness(hessian, rho=self.worst_case, seed=self.seed).value
        if self.average_case is not None:
            average = average_case_sharpness(hessian, rho=self.average_case, seed=self.seed)
            row["sharpness/average_case"] = average.value
        return row

    def _with_a_loss(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[bool]:
        """For which batches the training step returns one, on all processes. Lightning allows None."""
        missing = []
        with undisturbed(trainer, module) as rewind:
            for batch in self._batches:
                rewind()
                with torch.enable_grad(), full_precision(trainer, module):
                    missing.append(training_loss(module, copy_of(batch), 0) is None)
        missing_anywhere = trainer.strategy.reduce(
            torch.tensor(missing, dtype=torch.float32, device=module.device), reduce_op="sum"
        )
        return [processes == 0 for processes in missing_anywhere.tolist()]

    def _ascent_gap(self, trainer: pl.Trainer, module: pl.LightningModule, hessian: Hessian) -> float:
        """L(w + e) - L(w)."""
        grads = hessian.split(hessian.gradient())
        before = hessian.loss()
        rule: Rule = SAM(0.05 if self.rho is None else self.rho)
        own = getattr(module, "sam", None)
        radii = None
        if self.rho is None and isinstance(own, Rule):
            if not (own.ahead or own.perturbation.stateful):
                rule = own
            radius_of: dict[Tensor, float] = {}
            for optimizer in trainer.optimizers:
                at = progress_of(trainer, trainer.global_step, optimizer)
                radius_of |= radii_of(optimizer, value(own.rho, at))
            radii = [radius_of.get(param, 0.0) for param in hessian.params]
        with rule.perturbed(hessian.params, grads, radii):
            return hessian.loss() - before
