"""The two passes of one fit: the only place that runs two backward passes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lightning_same.gradients.grads import fill, grads_of, put, settle
from lightning_same.gradients.pair import TwoGradients
from lightning_same.gradients.tensors import all_finite
from lightning_same.replay.batch import copy_of
from lightning_same.replay.muting import muted_loggers
from lightning_same.replay.snapshot import Snapshot, parameters_of
from lightning_same.rules.base import Rule
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Schedule, value
from lightning_same.rules.state import Memory
from lightning_same.trainer.distributed import ddp_model, start_mean, unsynchronized
from lightning_same.trainer.loop import callbacks_of
from lightning_same.trainer.optimizers import momentum_of, progress_of, radii_of, trained
from lightning_same.trainer.precision import loss_scale
from lightning_same.trainer.training_step import check_loss
from lightning_same.two_pass.checks import check_optimizer, check_options, check_rule
from lightning_same.two_pass.gradient_store import GradientStore
from lightning_same.two_pass.options import TwoPassOptions


class MicroBatch(NamedTuple):
    """What pass two needs to repeat a training step.

    Attributes:
        args: a copy of those of the strategy's training step, as they were before pass one.
        before: the state just before pass one.
        buffers_synced: whether DDP broadcast the buffers then.
    """

    args: tuple[Any, ...]
    before: Snapshot
    buffers_synced: bool


class TwoPass:
    """The two passes of one fit.

    In automatic optimization, training steps go through `training_step` here, which remembers how to repeat them. When
    the last micro-batch of a window has had its backward, `after_pass_one` perturbs with the accumulated gradient and
    repeats them all, which equals one pass over one large batch; or it does so after each micro-batch, if the module's
    `TwoPassOptions` say so. In manual optimization, `manual_step` is the step.

    Args:
        module: the mixed module, whose attribute ``sam`` is the rule.
        trainer: its Trainer.
        refuse: checks the module and its Trainer, which has been done if it has a rule now; called if one comes later.

    Attributes:
        sam_pass: 1 in pass one, 2 in pass two, 0 outside of steps that take two.
    """

    def __init__(self, module: Any, trainer: pl.Trainer, refuse: Callable[[], None]) -> None:
        self.sam_pass = 0
        self._refuse = refuse
        self._checked = module.sam is not None
        self._module = module
        self._trainer = trainer
        self._strategy = trainer.strategy
        self._plain_training_step = self._strategy.training_step
        self._rule: Rule | None = None
        self._options = TwoPassOptions()
        self._may_perturb = False
        self._has_perturbed = False
        self._stepped_by_rule = False
        self._steps_before = 0
        self._skipped = 0
        self._at = Progress(step=-1)
        self._rho = 0.0
        self._latest: MicroBatch | None = None
        self._window: list[MicroBatch] = []
        self._store = GradientStore(trainer)
        self._ahead = ExitStack()
        self._memories = [Memory(trained(optimizer)) for optimizer in trainer.optimizers]
        self._forget: Callable[[], None] = _nothing
        if module.automatic_optimization:
            # On the strategy, the one place that every kind of `training_step` is reached through.
            self._strategy.training_step = self.training_step  # type: ignore[method-assign]

    def step_is_taken(self) -> None:
        """To be called after a batch: if it stepped, what the rule has remembered stays."""
        if not self._trainer.fit_loop._should_accumulate():
            self._forget = _nothing

    def release(self) -> None:
        """Give the strategy its own training step back, and the weights and the rule's memory their values."""
        self._ahead.close()
        self._forget()
        vars(self._strategy).pop("training_step", None)

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs to know of the former ones, with parameters by their names.

        Empty for plain training, of which a rule with a radius of 0 is a kind.
        """
        rule = self._module.sam
        state: dict[str, Any] = {"rule": repr(rule)} if isinstance(rule, Rule) and rule.rho != 0 else {}
        if any(self._memories):
            names = {param: name for name, param in self._module.named_parameters()}
            state["memories"] = [memory.state_dict(names) for memory in self._memories]
        if self._skipped:
            state["skipped_steps"] = self._skipped
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        params = dict(self._module.named_parameters())
        for memory, saved in zip(self._memories, state.get("memories", []), strict=False):
            memory.load_state_dict(saved, params)
        self._skipped = state.get("skipped_steps", 0)

    def log(self) -> None:
        """Log ``sam/rho`` if it changes as training goes on, and ``sam/skipped_steps`` if steps may be skipped."""
        if self._rule is None:
            return
        values: dict[str, float] = {}
        if isinstance(self._rule.rho, Schedule):
            values["sam/rho"] = self._rho
        if self._skips:
            values["sam/skipped_steps"] = float(self._skipped)
        if not values:
            return
        trainer = self._trainer
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        if trainer._logger_connector.should_update_logs:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def count_from_here(self) -> None:
        """Training begins, or goes on from a checkpoint file."""
        self._steps_before = self._trainer.global_step

    def check_manual_steps(self) -> None:
        """Check, after a batch, that a module in manual optimization takes its steps by the rule.

        Raises:
            RuntimeError: if it has stepped without `two_pass_step`.
        """
        module = self._module
        if module.automatic_optimization or module.sam is None:
            return
        if self._trainer.global_step > self._steps_before and not self._stepped_by_rule:
            raise RuntimeError(
                f"{type(module).__name__} is in manual optimization and has taken a step without `two_pass_step`, so it"
                f" does not train by {module.sam!r}. Call `self.two_pass_step(loss_fn, optimizer)` in place of"
                " zero_grad, manual_backward and step, or set `sam = None`."
            )

    def training_step(self, *args: Any) -> Any:
        """Pass one's forward."""
        self._ahead.close()
        loop = self._trainer.fit_loop
        # A run that resumes inside a window begins there.
        if self._at.step < 0 or loop.epoch_loop.batch_idx % self._trainer.accumulate_grad_batches == 0:
            self._begin(self._trainer.global_step, 0)
        if not self._may_perturb or loop._skip_backward:
            self._latest = None
            return self._plain_training_step(*args)
        self.sam_pass = 1
        assert self._rule is not None
        if self._rule.ahead:
            self._ahead.enter_context(self._perturbed_ahead(self._trainer.optimizers[0], self._rule))
            apart = False
        else:
            ddp = ddp_model(self._trainer)
            synced = ddp is not None and ddp.require_forward_param_sync
            self._latest = MicroBatch(copy_of(args), self._snapshot(), synced)
            if self._by_micro_batch and self._has_perturbed:
                self._store.set_aside(trained(self._trainer.optimizers[0]))
            apart = self._apart
        with unsynchronized(self._strategy) if apart else nullcontext():
            output = self._plain_training_step(*args)
        if output is None:
            # No backward comes for this micro-batch. The step is still taken with what the others have gathered.
            self._latest = None
            self.after_pass_one()
        return output

    def after_pass_one(self) -> None:
        """To be called after pass one's backward. Takes pass two if it is due, and finishes the step if that is."""
        self._ahead.close()
        if self._latest is not None:
            self._window.append(self._latest)
            self._latest = None
        if self._rule is not None:
            due = not self._trainer.fit_loop._should_accumulate()
            if self._window and (due or self._by_micro_batch):
                self._look(0, self._rule, self._replay_window, due)
                self._window.clear()
            self._store.take_up()
            if due:
                self._finish(0, self._rule)
        self.sam_pass = 0

    def manual_step(self, loss_fn: Callable[[], Tensor], optimizer: Optimizer | LightningOptimizer) -> Tensor:
        """`SAMMixin.two_pass_step`."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        check_optimizer(plain, self._module)
        index = next(index for index, each in enumerate(self._trainer.optimizers) if each is plain)
        self._stepped_by_rule = True
        self._begin(self._trainer.fit_loop.epoch_loop.total_batch_idx, index)
        rule = self._rule
        two_passes = rule is not None and self._may_perturb and not rule.ahead
        before = self._snapshot() if two_passes else None

        def forward_backward() -> Tensor:
            loss = check_loss(loss_fn(), "The `loss_fn` of two_pass_step")
            self._module.manual_backward(loss)
            return loss.detach()

        def replay() -> None:
            assert before is not None
            before.restore()
            forward_backward()

        optimizer.zero_grad()
        self.sam_pass = 1 if self._may_perturb else 0
        ahead = rule is not None and rule.ahead and self._may_perturb
        try:
            with (
                self._perturbed_ahead(plain, rule) if ahead and rule is not None else nullcontext(),
                unsynchronized(self._strategy) if two_passes and self._apart else nullcontext(),
            ):
                loss = forward_backward()
            if rule is not None:
                if two_passes:
                    self._look(index, rule, replay)
                self._finish(index, rule)
        finally:
            self.sam_pass = 0
        optimizer.step()
        return loss

    def _begin(self, step: int, index: int) -> None:
        """A step begins: which rule it follows, and whether it may perturb."""
        name = type(self._module).__name__
        rule = self._rule = self._module.sam
        self._options = self._module.two_pass
        self.sam_pass = 0
        self._may_perturb = self._has_perturbed = False
        self._window.clear()
        self._store.clear()
        self._forget = _nothing
        check_rule(rule, name)
        self._at = Progress(step)
        if rule is not None:
            if not self._checked:
                self._refuse()
                self._checked = True
            check_options(self._options, rule, name)
            optimizer = self._trainer.optimizers[index]
            self._at = progress_of(self._trainer, step, optimizer)
            self._rho = value(rule.rho, self._at)
            self._may_perturb = rule.timing.active(self._at)
            # What is remembered before the step is sure to be taken may have to be forgotten.
            early = rule.perturbation.stateful or rule.timing.stateful
            if early or (self._options.nonfinite == "skip" and rule.stateful):
                self._forget = self._memories[index].copy()

    @property
    def _skips(self) -> bool:
        """Whether steps that are not finite are dropped; a loss scaler does so by itself."""
        return self._options.nonfinite == "skip" and loss_scale(self._trainer, self._module.device) is None

    @property
    def _by_micro_batch(self) -> bool:
        """Whether each micro-batch of a window is perturbed by itself."""
        several = self._module.automatic_optimization and self._trainer.accumulate_grad_batches > 1
        return several and self._may_perturb and self._options.accumulate == "micro_batch"

    @property
    def _apart(self) -> bool:
        """Whether the gradients of pass one stay on their process."""
        local = self._options.ascent == "local" or self._by_micro_batch
        return local and ddp_model(self._trainer) is not None

    def _snapshot(self) -> Snapshot:
        # Asked anew each time: a callback may unfreeze parameters, or add a group, in the middle of training.
        stepped = [param for optimizer in self._trainer.optimizers for param in trained(optimizer)]
        return Snapshot(self._module, stepped, self._module.device)

    def _replay_window(self) -> None:
        """Repeat the forwards and backwards of pass one."""
        ddp = ddp_model(self._trainer)
        for index, micro_batch in enumerate(self._window):
            micro_batch.before.restore()
            if ddp is not None:
                ddp.require_forward_param_sync = micro_batch.buffers_synced
            # The last one synchronizes the gradients, unless more micro-batches follow: Lightning blocks it then.
            last = index == len(self._window) - 1
            with nullcontext() if last else unsynchronized(self._strategy):
                output = self._plain_training_step(*micro_batch.args)
                loss = output["loss"] if isinstance(output, dict) else output
                loss = check_loss(loss, f"Pass two of {type(self._module).__name__}.training_step")
                loss = loss / self._trainer.accumulate_grad_batches
                scale = loss_scale(self._trainer, loss.device)
                self._module.backward(loss if scale is None else loss * scale)

    def _perturbed_ahead(self, optimizer: Optimizer, rule: Rule) -> AbstractContextManager[None]:
        """The weights at w + e, by the optimizer's momentum."""
        radii = radii_of(optimizer, self._rho)
        momenta = {param: momentum_of(optimizer, param) for param in radii}
        params = [param for param, momentum in momenta.items() if momentum is not None]
        return rule.perturbed(
            params, [m for m in momenta.values() if m is not None], [radii[param] for param in params], self._at
        )

    def _look(self, index: int, rule: Rule, replay: Callable[[], None], last: bool = True) -> None:
        """From g in ``.grad`` to s in ``.grad``, if the step perturbs; everything else stays as pass one left it.

        Args:
            index: of the optimizer whose parameters are perturbed.
            rule: the rule.
            replay: repeats the forwards and backwards of pass one.
            last: whether they are the last of the step.
        """
        optimizer = self._trainer.optimizers[index]
        radii, apart = radii_of(optimizer, self._rho), self._apart
        if apart:
            # Which parameters have a gradient may differ between the processes.
            fill(radii)
            if self._options.ascent == "global":
                put(dict(zip(radii, start_mean(grads_of(radii))(), strict=True)))
        params = [param for param in radii if param.grad is not None]
        settle(params)
        memory = self._memories[index].view(params)
        along = self._unscaled(rule, grads_of(params))
        if not (params and rule.timing.confirmed(along, self._at, memory)):
            return
        self._has_perturbed = True
        keep = rule.combination.needs_grads or bool(self._observers())
        after = self._snapshot()
        others = [param for param in parameters_of(self._module) if param not in radii]
        grads = self._store.take([*others, *params])
        foreign = {param: grads.get(param) for param in others}
        perturbed = rule.perturbed(params, along, [radii[param] for param in params], self._at, memory)
        self.sam_pass = 2
        base_arrives = _nothing
        try:
            with muted_loggers(self._trainer), perturbed:
                # e is made: what is not needed after pass two makes room for it.
                along.clear()
                if keep:
                    self._store.add_to_base({param: grads[param] for param in params})
                grads.clear()
                if last and apart and self._options.ascent == "local":
                    base_arrives = self._store.average_base()
                self._store.take_up()
                replay()
        finally:
            self.sam_pass = 1
            after.restore()
            put(foreign)
        base_arrives()
        if not apart:
            # Not reached at w + e: the gradient there is zero, while the optimizer steps the parameter.
            fill(params)

    def _finish(self, index: int, rule: Rule) -> None:
        """From s in ``.grad``, or from g on a step that has not perturbed, to d in ``.grad``."""
        params = [param for param in trained(self._trainer.optimizers[index]) if param.grad is not None]
        settle(params)
        memory = self._memories[index].view(params)
        step = grads_of(params)
        base: list[Tensor] = []
        if not self._has_perturbed and not rule.ahead:
            rule.plain_step_(step, memory)
        elif self._store.base:
            known = self._store.base
            base = [known[param] if param in known else torch.zeros_like(param) for param in params]
            observers = self._observers()
            if observers:
                found = TwoGradients(params, base, step, loss_scale(self._trainer, self._module.device))
                for observer in observers:
                    observer.on_two_pass_gradients(self._trainer, self._module, found)
            rule.combine_(base, step, self._at, memory)
        self._store.clear()
        if self._skips:
            self._skip_unless_finite([*base, *step], params)

    def _skip_unless_finite(self, tensors: list[Tensor], params: list[Tensor]) -> None:
        """Without gradients no optimizer changes anything; the step still counts as one."""
        bad: Tensor = (~all_finite(tensors)).float().to(self._module.device)
        bad = self._strategy.reduce(bad, reduce_op="sum")
        if bad.item():
            put(dict.fromkeys(params))
            self._forget()
            self._skipped += 1

    def _unscaled(self, rule: Rule, grads: list[Tensor]) -> list[Tensor]:
        """g of the loss itself, for rules to which its size matters. Never by the scaler, which unscales once."""
        if rule.scale_free:
            return grads
        scale = loss_scale(self._trainer, self._module.device)
        parts = self._trainer.accumulate_grad_batches if self._by_micro_batch else 1
        if scale is None and parts == 1:
            return grads
        return list(torch._foreach_mul(grads, parts if scale is None else parts / scale))

    def _observers(self) -> list[Any]:
        """The callbacks that want this step's gradients."""
        return [each for each in callbacks_of(self._trainer) if _observes(each, self._trainer)]


def _nothing() -> None:
    pass


def _observes(callback: Callback, trainer: pl.Trainer) -> bool:
    """Whether the callback has the hook ``on_two_pass_gradients`` and wants this step's gradients."""
    wants = getattr(callback, "wants_two_pass_gradients", None)
    return hasattr(callback, "on_two_pass_gradients") and (wants is None or wants(trainer))
