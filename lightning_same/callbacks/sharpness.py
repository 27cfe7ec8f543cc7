"""How sharp the loss is while a model trains: when to measure it, and what to log."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_same.callbacks.ascent import ascent
from lightning_same.callbacks.cadence import Cadence
from lightning_same.callbacks.mean_loss import Mode, mean_loss
from lightning_same.callbacks.monitor import Monitor
from lightning_same.callbacks.probe import LossFn, check_probe
from lightning_same.callbacks.probe_batches import ProbeBatches
from lightning_same.callbacks.sharpness_measures import Measures
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.vectors import cosine
from lightning_same.rules.settings import check_function, check_int, check_number
from lightning_same.trainer.loop import is_accumulating, steps_logged
from lightning_same.trainer.optimizers import largest_lr

EVERY_N_STEPS = 500
"""In later training a measurement costs the median of 20 training steps, which is then 4 % of the training."""


class SharpnessMonitor(Monitor):
    r"""Logs the extreme eigenvalues of the loss's Hessian, and how much the loss rises from w to w + e.

    All measurements use the same batches, so that the curve shows how the weights change, not the batches. Training
    stays bit for bit what it is without the callback, if `training_step` can be replayed (see `ReplayCheck`). Autocast
    is off: under mixed precision the float32 weights are measured in float32. Under DDP the loss is the mean over the
    samples of all processes, every rank holds the same values, and each Hessian-vector product adds one all-reduce.

    A measurement costs 40 to 70 forward-backward passes in the first steps, where the spectrum is crowded, and about 20
    later (the median). While it runs, it holds one vector as large as the weights for each product.

    Logged:
        ``sharpness/top_eigenvalue``, ``sharpness/bottom_eigenvalue``: as `top_eigenvalue` finds them.
        ``sharpness/residual``, ``sharpness/bottom_residual``: an eigenvalue lies within this distance of the largest,
        and of the smallest.
        ``sharpness/rounding``: estimate of the rounding error, which the residuals include.
        ``sharpness/upper_bound``: with a probability of 99% no eigenvalue is larger.
        ``sharpness/hvps``: number of Hessian-vector products.
        ``sharpness/converged``: 1 if every search met its tolerance; else 0, with a warning.
        ``sharpness/ascent_gap``: L(w + e) - L(w).
        ``sharpness/ascent_curvature``: 2 (L(w + e) - L(w) - g'e) / e'e, the mean curvature along e on the way to w + e;
        float32 leaves an error of about 2e-7 L / e'e.
        ``sharpness/two_over_lr``: 2 / lr for the largest learning rate. Gradient descent is unstable along directions
        of larger curvature.
        ``sharpness/ascent_alignment``: abs(cos) of the angle between e and the eigenvector of the largest eigenvalue.
        ``sharpness/step_alignment``: the same for the change of the weights in the step that follows; logged after it.
        ``sharpness/gradient_curvature``: g'Hg / g'g, if asked for.
        ``sharpness/adaptive_top_eigenvalue``, ``sharpness/worst_case``, ``sharpness/average_case``: if asked for.

    A batch for which the training step returns None is left out, with a warning.

    Args:
        every_n_steps: measure at every n-th optimizer step, before it is taken, the first included. Default: 500, if
            ``every_n_epochs`` is not given either.
        every_n_epochs: measure at the end of every n-th epoch instead.
        probe_batches: how many of the first training batches to measure on; they stay on the device. With more than
            one, the first measurement waits for them. Checkpoint files do not hold them: a resumed training takes new
            ones, and its curve may jump there. Or the batches themselves, such as ``list(islice(loader, 4))``; under
            DDP each process gives its own, any number of them, or none.
        loss_fn: the mean loss of ``(module, batch)``. Default: the module's training step; a module in manual
            optimization needs one.
        samples_fn: the number of samples of a batch (or of tokens: of what the loss is a mean over), which is the
            batch's weight. Default: the leading dimension of its tensors.
        rho: length of e = rho * g / \|\|g\|\|, where g is the gradient on the same batches. Default: on a
            module without a rule 0.05. On a module with a rule, e is that of the rule at its present radius if the
            rule computes e from g alone; else e is SAM's at that radius.
        mode: "eval" measures with BatchNorm's running statistics and without dropout, "train" with the modules in the
            mode that they train in. These are different losses; do not compare their curvatures.
        track: start each search near the last eigenvector. This saves a product or two where measurements are close
            together. If another eigenvalue has become the largest, it is found all the same: see `top_eigenvalue`.
        tolerance: accepted residual, relative to the eigenvalue.
        both_ends: search until the smallest eigenvalue has converged too, which takes 2 to 7 times as many products.
        max_products: the largest number of products for an eigenvalue.
        confident: go on until the upper bound is within the tolerance too: 2 to 4 more products.
        dtype: "float64" measures copies in float64; "auto" only where rounding exceeds the tolerance, as late in
            training with cross-entropy: see `Hessian`. Default: the dtype of the module.
        adaptive: measure the largest eigenvalue of `AdaptiveHessian` too, which does not change when weights are
            rescaled without changing the function. It takes as many products again.
        worst_case: radius of the ball, in units of the weights, for `worst_case_sharpness`: 22 forward-backward passes.
        average_case: standard deviation, in units of the weights, for `average_case_sharpness`: 33 forward passes.
        gradient_curvature: measure g'Hg / g'g too: one more product, and a gradient in float64 that shows its rounding
            error.
        seed: of the random start.
        prog_bar: show the largest eigenvalue in the progress bar too, as ``top_eigenvalue``.
        name: becomes part of the keys, as in ``sharpness/NAME/top_eigenvalue``, for several monitors in one training.

    Raises:
        ValueError: if an option is out of range, or ``every_n_steps`` and ``every_n_epochs`` are both given.
    """

    keys_begin_with = "sharpness"
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
        gradient_curvature: bool = False,
        seed: int = 0,
        prog_bar: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.cadence = Cadence(self, every_n_steps, every_n_epochs, default_steps=EVERY_N_STEPS)
        check_function(self, "loss_fn", loss_fn)
        check_function(self, "samples_fn", samples_fn)
        self._probe = ProbeBatches(self, probe_batches)
        check_int(self, "max_products", max_products, at_least=1)
        check_int(self, "seed", seed, at_least=0)
        check_number(self, "tolerance", tolerance, above=0)
        for option, radius in {"rho": rho, "worst_case": worst_case, "average_case": average_case}.items():
            if radius is not None:
                check_number(self, option, radius, above=0)
        if dtype not in (None, "float64", "auto"):
            raise ValueError(f'SharpnessMonitor: `dtype` must be "float64", "auto" or None, got {dtype!r}.')
        if mode not in get_args(Mode):
            raise ValueError(f'SharpnessMonitor: `mode` must be "eval" or "train", got {mode!r}.')
        self.loss_fn = loss_fn
        self.samples_fn = samples_fn
        self.rho = rho
        self.mode: Mode = mode
        self.track = track
        self.dtype: Literal["float64", "auto"] | None = dtype
        self.measures = Measures(
            tolerance=tolerance,
            both_ends=both_ends,
            max_products=max_products,
            confident=confident,
            adaptive=adaptive,
            worst_case=worst_case,
            average_case=average_case,
            gradient_curvature=gradient_curvature,
            seed=seed,
        )
        self.prog_bar = prog_bar
        self._vector: Tensor | None = None
        self._before_step: tuple[Tensor, list[Tensor], Tensor] | None = None
        self._warned = False
        self._last_step: int | None = None
        self._loaded_step: int | None = None

    @property
    @override
    def state_key(self) -> str:
        return f"SharpnessMonitor[name={self.name}, mode={self.mode}]"

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        check_probe(pl_module, trainer, self.loss_fn, "SharpnessMonitor", curvature=True)
        self._vector = self._before_step = None
        self._probe.begin(trainer, pl_module, self.mode)
        self._last_step, self._loaded_step = self._loaded_step, None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._probe.check_length(trainer)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._probe.take(batch)
        if self._probe.ready and self.cadence.is_overdue(trainer, self._last_step):
            self._measure(trainer, pl_module, steps_logged(trainer))
            if self._probe.ready:
                self._last_step = steps_logged(trainer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._before_step is not None and not is_accumulating(trainer):
            (vector, params, before), self._before_step = self._before_step, None
            step = _flat(params, before.dtype).sub_(before)
            self._log(trainer, {"sharpness/step_alignment": cosine(step, vector).abs()})
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._probe.ready and self.cadence.measures_epoch_end(trainer):
            # The step under which Lightning logs what belongs to the epoch that has ended.
            self._measure(trainer, pl_module, steps_logged(trainer) - 1)
        if not self._probe.ready and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"SharpnessMonitor: nothing is measured yet. {self._probe.missing}. The next epoch's are taken too, if"
                " there is one."
            )
        super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._vector = self._before_step = None  # copies of the weights' size
        self._probe.end()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded_step = state_dict["last_step"]

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if self.loss_fn is None and not self._probe.have_losses(trainer, module):
            return
        with mean_loss(
            trainer, module, self._probe.batches, self.loss_fn, self.samples_fn, self.mode, "SharpnessMonitor"
        ) as loss:
            hessian = Hessian(**loss, dtype=self.dtype)
            rule, radii = ascent(trainer, module, self.rho)
            seed = self.measures.seed + trainer.global_step if self.track else None
            # Parameters may have been unfrozen since.
            start = self._vector if self._vector is not None and len(self._vector) == hessian.size else None
            row, vector, doubts = self.measures.of(hessian, rule, radii, start, seed)
        self._vector = vector if self.track else None
        for doubt in doubts:
            rank_zero_warn(
                "SharpnessMonitor: a measurement has not converged, or is not finite; it is logged with"
                f" {self._named('sharpness/converged')} = 0. `max_products` is {self.measures.max_products},"
                f" `tolerance` {self.measures.tolerance:g}: {doubt}"
            )
        if (lr := largest_lr(trainer)) > 0:
            row["sharpness/two_over_lr"] = 2 / lr
        # These parameters, also if the step freezes or unfreezes some.
        params: list[Tensor] = [param for param in module.parameters() if param.requires_grad]
        self._before_step = (vector, params, _flat(params, vector.dtype))
        self._log(trainer, row, step=step, prog_bar=self.prog_bar)


def _flat(params: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A copy of the weights as one vector, in the order of the Hessian's rows."""
    return torch.cat([param.detach().reshape(-1).to(dtype) for param in params])
