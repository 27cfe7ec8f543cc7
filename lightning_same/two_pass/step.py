"""One optimizer step, from top to bottom: pass one, the perturbation, pass two, what the optimizer steps with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_same.gradients.grads import add_partial_grads, fill_missing_grads, grads_of, set_grads
from lightning_same.gradients.pair import TwoGradients
from lightning_same.gradients.tensors import all_finite
from lightning_same.replay.modules import modules_of
from lightning_same.replay.tensor_copies import TensorCopies
from lightning_same.replay.undisturbed import ReplayState, undisturbed
from lightning_same.rules.base import Rule
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import value
from lightning_same.trainer.distributed import (
    ddp_model,
    reshard,
    start_mean,
    sum_over_processes,
    unsynchronized,
)
from lightning_same.trainer.loop import callbacks_of
from lightning_same.trainer.optimizers import lr_ratio, momentum_of, radii_of, trained
from lightning_same.trainer.precision import loss_scale
from lightning_same.two_pass.checks import check_module, check_options, check_rule, check_trainable
from lightning_same.two_pass.fit import Fit
from lightning_same.two_pass.gradient_store import GradientStore, check_apart
from lightning_same.two_pass.options import TwoPassOptions
from lightning_same.two_pass.radius_check import check_radius
from lightning_same.two_pass.written_weights import WeightsBefore


def open_step(fit: Fit, index: int, count: int, total: int | None) -> "Step":
    """The step that is about to begin, by the rule and the options that the module has now.

    Args:
        fit: the fit that it belongs to.
        index: of the optimizer that will step.
        count: steps before it.
        total: steps of the whole training; None if it has no known end.

    Raises:
        TypeError: if the rule or the options are of the wrong kind.
        ValueError: if the rule cannot run with these options.
        RuntimeError: if the module or the Trainer excludes two passes.
    """
    rule, options = fit.module.sam, fit.module.two_pass
    check_rule(rule, type(fit.module).__name__)
    if rule is None:
        return Step(fit, index, None, options, Progress(count))
    if fit.checked is not rule:  # The rule was set after the fit had begun.
        check_module(fit.module, fit.trainer)
        fit.checked, fit.checked_options = rule, options
    if fit.checked_options is not options:
        check_options(options, rule, type(fit.module).__name__)
        fit.checked_options = options
    check_trainable(fit.trainer.optimizers[index], type(fit.module).__name__)
    progress = Progress(count, fit.trainer.current_epoch, total, lr_ratio(fit.trainer.optimizers[index]))
    if not rule.timing.active(progress):
        return Step(fit, index, rule, options, progress)
    kind = LookAheadStep if rule.ahead else TwoPassStep
    return kind(fit, index, rule, options, progress)


class Step:
    """A step without a second pass: g becomes d.

    A route calls the methods in the order in which they stand here. `first_pass` and `second_pass` come once for each
    micro-batch, or once for all of them.

    Args:
        fit: the fit that the step belongs to.
        index: of the optimizer that will step.
        rule: the rule; None for a step that is Lightning's alone.
        options: how the passes run.
        progress: how far training has come.

    Attributes:
        sam_pass: 1 in pass one, 2 in pass two, 0 outside of both.
        rho: the rule's radius at this step.
        fit: the fit.
        trainer: its Trainer.
        module: its module.
    """

    perturbs: ClassVar[bool] = False
    """Whether there is a pass at w + e."""

    replays: ClassVar[bool] = False
    """Whether the training step is repeated, so that what it changes must be known."""

    by_micro_batch: bool = False
    """Whether each micro-batch is perturbed by itself."""

    def __init__(self, fit: Fit, index: int, rule: Rule | None, options: TwoPassOptions, progress: Progress) -> None:
        self.sam_pass = 0
        self.rule = rule
        self.rho = 0.0 if rule is None else value(rule.rho, progress)
        self.fit, self.trainer, self.module = fit, fit.trainer, fit.module
        self._optimizer = fit.trainer.optimizers[index]
        self._options = options
        self._progress = progress
        self._memory = fit.memories[index]
        self._undo_memory = self._memory.copy() if self._may_be_undone else _nothing

    @property
    def checks_replay(self) -> bool:
        """Whether a replay of pass one is to be compared with it."""
        return self.replays and self._options.check_replay and not self.fit.is_replay_checked

    def first_pass(self, before: ReplayState | None) -> AbstractContextManager[None]:
        """A context for the forward and backward that leave g in ``.grad``.

        Args:
            before: the state now, if the step `replays`.
        """
        return nullcontext()

    def second_pass(
        self,
        replay: Callable[[ReplayState], object],
        release: Callable[[Sequence[Tensor]], None],
        *,
        last: bool = True,
    ) -> None:
        """g in ``.grad`` becomes s; all else stays as pass one has left it.

        Args:
            replay: repeats the forwards and backwards of pass one, from the state before it; called with the state
                after it, which it finds.
            release: called with parameters that are not a part of that state, though they were when it was taken: their
                values are put back once, and then the replay leaves them alone.
            last: whether the forwards and backwards are the last of the step.
        """

    def end_micro_batch(self) -> None:
        """Add the gradients of earlier micro-batches to those of this one."""

    def finish(self) -> None:
        """What is in ``.grad`` becomes d."""
        if self.rule is not None:
            params, grads = self._step_grads()
            self.rule.plain_step_(grads, self._memory.view(params))
            self._drop_unless_finite(grads, params)

    def commit(self) -> None:
        """The optimizer has stepped: what the rule has kept during the step stays."""
        self._undo_memory = _nothing

    def cancel(self) -> None:
        """The optimizer will not step: the rule forgets what it has kept during the step."""
        self._undo_memory()

    @property
    def may_be_dropped(self) -> bool:
        """Whether the step is dropped if it is not finite; a loss scaler does so by itself."""
        return self._options.nonfinite == "skip" and loss_scale(self.trainer, self.module.device) is None

    @property
    def _may_be_undone(self) -> bool:
        """Whether the rule may keep something before it is sure that the optimizer steps."""
        rule = self.rule
        if rule is None:
            return False
        early = rule.perturbation.stateful or rule.timing.stateful
        return early or (self._options.nonfinite == "skip" and rule.stateful)

    def _step_grads(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters with a gradient, and the gradients."""
        params = [param for param in trained(self._optimizer) if param.grad is not None]
        add_partial_grads(params)
        return params, grads_of(params)

    def _drop_unless_finite(self, tensors: list[Tensor], params: list[Tensor]) -> None:
        """Take the gradients away if one is inf or NaN: no optimizer changes anything then, and the step counts."""
        if not self.may_be_dropped:
            return
        not_finite: Tensor = (~all_finite(tensors)).float().to(self.module.device)
        if sum_over_processes(self.trainer, not_finite).item():
            set_grads(dict.fromkeys(params))
            self.cancel()
            self.fit.skipped_steps += 1


class LookAheadStep(Step):
    """A step whose only pass is the one at w + e, with e from the optimizer's momentum."""

    perturbs = True

    @override
    @contextmanager
    def first_pass(self, before: ReplayState | None) -> Iterator[None]:
        assert self.rule is not None
        radii = radii_of(self._optimizer, self.rho)
        momenta = {param: momentum_of(self._optimizer, param) for param in radii}
        ahead = {param: momentum for param, momentum in momenta.items() if momentum is not None}
        reshard(modules_of(self.module))
        self.sam_pass = 1
        try:
            with self.rule.perturbed(
                list(ahead), list(ahead.values()), [radii[param] for param in ahead], self._progress
            ):
                yield
        finally:
            self.sam_pass = 0
            reshard(modules_of(self.module))

    @override
    def finish(self) -> None:
        params, grads = self._step_grads()
        self._drop_unless_finite(grads, params)


_NO_CONTEXT = nullcontext()


class _Pass(AbstractContextManager[None]):
    """One pass of a step.

    Args:
        step: the step.
        number: 1 or 2.
        around: another context around it.
    """

    def __init__(self, step: Step, number: int, around: AbstractContextManager[None]) -> None:
        self._step, self._number, self._around = step, number, around

    @override
    def __enter__(self) -> None:
        self._step.sam_pass = self._number
        try:
            self._around.__enter__()
        except BaseException:
            self._step.sam_pass = 0
            raise

    @override
    def __exit__(self, *error: Any) -> bool | None:
        self._step.sam_pass = 0
        return self._around.__exit__(*error)


class TwoPassStep(Step):
    """A step with a pass at w, which gives g, and a pass at w + e, which gives s.

    Attributes:
        is_local: whether the gradients of pass one stay on their process.
    """

    perturbs = True
    replays = True

    def __init__(self, fit: Fit, index: int, rule: Rule, options: TwoPassOptions, progress: Progress) -> None:
        super().__init__(fit, index, rule, options, progress)
        several = fit.module.automatic_optimization and fit.trainer.accumulate_grad_batches > 1
        self.by_micro_batch = several and options.accumulate == "micro_batch"
        self.rule: Rule = rule
        self._store = GradientStore(fit.trainer)
        self._has_perturbed = False
        self._weights: WeightsBefore | None = None
        self.is_local = (options.ascent == "local" or self.by_micro_batch) and ddp_model(fit.trainer) is not None

    @override
    def first_pass(self, before: ReplayState | None) -> AbstractContextManager[None]:
        assert before is not None
        if self._has_perturbed:
            self._store.set_aside(trained(self._optimizer))
        if self._weights is None or self.by_micro_batch:
            # The first step that perturbs keeps a copy, to see whether weights are written; later ones if they are.
            copy = self.fit.writes_weights is not False
            self._weights = WeightsBefore(self.fit.stepped_parameters(), copy, before.module)
        return _Pass(self, 1, unsynchronized(self.trainer.strategy) if self.is_local else _NO_CONTEXT)

    @override
    def second_pass(
        self,
        replay: Callable[[ReplayState], object],
        release: Callable[[Sequence[Tensor]], None],
        *,
        last: bool = True,
    ) -> None:
        radii = radii_of(self._optimizer, self.rho)
        if self.is_local:
            # Which parameters have a gradient may differ between the processes.
            fill_missing_grads(radii)
            if self._options.ascent == "global":
                set_grads(dict(zip(radii, start_mean(grads_of(radii))(), strict=True)))
        params = [param for param in radii if param.grad is not None]
        add_partial_grads(params)
        memory = self._memory.view(params)
        direction = self._unscaled(grads_of(params))
        if not (params and self.rule.timing.confirmed(direction, self._progress, memory)):
            reshard(modules_of(self.module))
            return
        self._has_perturbed = True
        finite_at_w = self._finite_at_w(direction)
        keeps_base = self.rule.combination.needs_grads or bool(self._observers())
        average_is_there: Callable[[], None] = _nothing
        with (
            undisturbed(
                self.trainer, self.module, self.fit.stepped_parameters(), self.fit.inventory, in_step=True
            ) as here,
            self.weights_as_before(here),
            self._unfrozen_as_before(params, release),
        ):
            others = [param for param in here.module.params if param not in radii]
            kept = self._store.take(others)
            other_grads = {param: kept.get(param) for param in others}
            grads = self._store.take(params, until_backward=not keeps_base)
            perturbed = self.rule.perturbed(
                params, direction, [radii[param] for param in params], self._progress, memory
            )
            try:
                with _Pass(self, 2, perturbed):
                    # e is made: what is not needed after pass two makes room for it.
                    direction.clear()
                    if keeps_base:
                        self._store.add_to_base({param: grads[param] for param in params})
                    grads.clear()
                    if last and self.is_local and self._options.ascent == "local":
                        average_is_there = self._store.average_base()
                    self._store.take_up()
                    replay(here)
            finally:
                set_grads(other_grads)
        average_is_there()
        if not self.is_local:
            # Not reached at w + e: the gradient there is zero, while the optimizer steps the parameter.
            fill_missing_grads(params)
        if finite_at_w is not None:
            self.fit.is_radius_checked = True
            reached = [param for param in params if param.grad is not None]
            check_radius(type(self.module).__name__, self.rule, self.rho, finite_at_w, grads_of(reached))

    @override
    def end_micro_batch(self) -> None:
        self._store.take_up()

    @override
    def finish(self) -> None:
        params, step_grads = self._step_grads()
        memory = self._memory.view(params)
        base: list[Tensor] = []
        if not self._has_perturbed:
            self.rule.plain_step_(step_grads, memory)
        elif self._store.base:
            known = self._store.base
            base = [known[param] if param in known else torch.zeros_like(param) for param in params]
            check_apart(base, step_grads, type(self.module).__name__)
            self._show(TwoGradients(params, base, step_grads, loss_scale(self.trainer, self.module.device)))
            self.rule.combine_(base, step_grads, self._progress, memory)
        self._drop_unless_finite([*base, *step_grads], params)

    def weights_as_before(self, here: ReplayState) -> AbstractContextManager[object]:
        """The weights with which pass one began, if it has written to them; then what pass one has left.

        Args:
            here: the state after pass one.
        """
        assert self._weights is not None
        written = self._weights.were_written(here.module)
        if self.fit.writes_weights is None or (written and not self.fit.writes_weights):
            self.fit.writes_weights = written
        if not written:
            return _NO_CONTEXT
        if self._weights.copies is None:
            rank_zero_warn(
                f"{type(self.module).__name__}.training_step has written to trained weights for the first time in this"
                " fit. In this step pass two begins with what was written; from the next step on it begins where pass"
                " one began."
            )
            return _NO_CONTEXT
        left = TensorCopies(self.fit.stepped_parameters())
        self._weights.copies.restore()
        return _restored(left)

    def _unfrozen_as_before(
        self, params: Sequence[Tensor], release: Callable[[Sequence[Tensor]], None]
    ) -> AbstractContextManager[object]:
        """Weights that pass one has unfrozen, as it found them; then as it has left them.

        Pass two moves them with the others, so the state before pass one must not hold them any more.
        """
        assert self._weights is not None
        known = set(map(id, self._weights.params))
        unfrozen = [param for param in params if id(param) not in known]
        if not unfrozen:
            return _NO_CONTEXT
        left = TensorCopies(unfrozen)
        release(unfrozen)
        return _restored(left)

    def _unscaled(self, grads: list[Tensor]) -> list[Tensor]:
        """g of the loss itself, for rules to which its size matters. Never by the scaler, which unscales once."""
        if self.rule.scale_free:
            return grads
        scale = loss_scale(self.trainer, self.module.device)
        parts = self.trainer.accumulate_grad_batches if self.by_micro_batch else 1
        if scale is None and parts == 1:
            return grads
        return list(torch._foreach_mul(grads, parts if scale is None else parts / scale))

    def _finite_at_w(self, grads: list[Tensor]) -> Tensor | None:
        """Whether g is finite, on the first perturbation of a fit; None on others, and where a loss scaler tells."""
        is_first = self._options.check_replay and not self.fit.is_radius_checked and self.rho > 0
        return all_finite(grads) if is_first and loss_scale(self.trainer, self.module.device) is None else None

    def _show(self, gradients: TwoGradients) -> None:
        for observer in self._observers():
            observer.on_two_pass_gradients(self.trainer, self.module, gradients)

    def _observers(self) -> list[Any]:
        """The callbacks that want this step's gradients."""
        return [callback for callback in callbacks_of(self.trainer) if self._observes(callback)]

    def _observes(self, callback: Callback) -> bool:
        wants = getattr(callback, "wants_two_pass_gradients", None)
        return hasattr(callback, "on_two_pass_gradients") and (wants is None or wants(self.trainer))


@contextmanager
def _restored(copies: TensorCopies) -> Iterator[None]:
    """When the context ends, the values are put back."""
    try:
        yield
    finally:
        copies.restore()


def _nothing() -> None:
    pass
