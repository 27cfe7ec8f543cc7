"""The two passes of one fit: the only place that runs two backward passes."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_same.memory import Memory
from lightning_same.optimizers import momentum_of, progress_of, radii_of, trained
from lightning_same.refusals import checked_loss, refuse_optimizer, refuse_rule
from lightning_same.replay import Snapshot, copy_of
from lightning_same.rule import Rule
from lightning_same.silence import muted_loggers
from lightning_same.timing import Progress, Schedule, value


class MicroBatch(NamedTuple):
    """What pass two needs to repeat a training step.

    Attributes:
        args: a copy of those of the strategy's training step, as they were before pass one.
        before: the state just before pass one.
    """

    args: tuple[Any, ...]
    before: Snapshot


class TwoPass:
    """The two passes of one fit.

    In automatic optimization, training steps go through `training_step` here, which remembers how to repeat them. When
    the last micro-batch of a window has had its backward, `after_pass_one` perturbs with the accumulated gradient and
    repeats them all, which equals one pass over one large batch. In manual optimization, `manual_step` is the step.

    Args:
        module: the mixed module, whose attribute ``sam`` is the rule.
        trainer: its Trainer.
        refuse: checks the module and its Trainer, which has been done if it has a rule now; called if one comes later.
        state: what `state_dict` returned when the checkpoint file was written that training resumes from.

    Attributes:
        sam_pass: 1 in pass one, 2 in pass two, 0 outside of steps that take two.
    """

    def __init__(
        self, module: Any, trainer: pl.Trainer, refuse: Callable[[], None], state: dict[str, Any] | None = None
    ) -> None:
        self.sam_pass = 0
        self._refuse = refuse
        self._checked = module.sam is not None
        self._module = module
        self._trainer = trainer
        self._strategy = trainer.strategy
        self._plain_training_step = self._strategy.training_step
        self._rule: Rule | None = None
        self._may_perturb = False
        self._stepped_by_rule = False
        self._steps_before = 0
        self._at = Progress(step=-1)
        self._rho = 0.0
        self._latest: MicroBatch | None = None
        self._window: list[MicroBatch] = []
        self._ahead = ExitStack()
        self._memories = [Memory(trained(optimizer)) for optimizer in trainer.optimizers]
        if state is not None:
            params = dict(module.named_parameters())
            for memory, saved in zip(self._memories, state["memories"], strict=False):
                memory.load_state_dict(saved, params)
        if module.automatic_optimization:
            # On the strategy, the one place that every kind of `training_step` is reached through.
            self._strategy.training_step = self.training_step  # type: ignore[method-assign]

    def release(self) -> None:
        """Give the strategy its own training step back, and the weights their values."""
        self._ahead.close()
        vars(self._strategy).pop("training_step", None)

    def state_dict(self) -> dict[str, Any]:
        """What the rule carries from step to step, by parameter names; empty for rules that carry nothing."""
        if not any(self._memories):
            return {}
        names = {param: name for name, param in self._module.named_parameters()}
        return {"memories": [memory.state_dict(names) for memory in self._memories]}

    def log_rho(self) -> None:
        """Log ``sam/rho`` if it changes as training goes on."""
        trainer = self._trainer
        if self._rule is not None and isinstance(self._rule.rho, Schedule):
            trainer.callback_metrics["sam/rho"] = torch.tensor(self._rho)
            if trainer._logger_connector.should_update_logs:
                for logger in trainer.loggers:
                    logger.log_metrics({"sam/rho": self._rho}, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def count_from_here(self) -> None:
        """Training begins, or goes on from a checkpoint file."""
        self._steps_before = self._trainer.global_step

    def refuse_steps_of_their_own(self) -> None:
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
            self._window.clear()
            self._begin(self._trainer.global_step, self._trainer.optimizers[0])
        if not self._may_perturb or loop._skip_backward:
            self._latest = None
            return self._plain_training_step(*args)
        self.sam_pass = 1
        assert self._rule is not None
        if self._rule.ahead:
            self._ahead.enter_context(self._perturbed_ahead(self._trainer.optimizers[0], self._rule))
        else:
            self._latest = MicroBatch(copy_of(args), self._snapshot())
        output = self._plain_training_step(*args)
        if output is None:
            # No backward comes for this micro-batch. The step is still taken with what the others have gathered.
            self._latest = None
            self.after_pass_one()
        return output

    def after_pass_one(self) -> None:
        """To be called after pass one's backward. Takes pass two if the optimizer steps now."""
        self._ahead.close()
        if self._latest is not None:
            self._window.append(self._latest)
            self._latest = None
        if self._rule is not None and not self._trainer.fit_loop._should_accumulate():
            self._finish(0, self._trainer.optimizers[0], self._rule, self._replay_window)
            self._window.clear()
        self.sam_pass = 0

    def manual_step(self, loss_fn: Callable[[], Tensor], optimizer: Optimizer | LightningOptimizer) -> Tensor:
        """`SAMMixin.two_pass_step`."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        refuse_optimizer(plain, self._module)
        index = next(index for index, each in enumerate(self._trainer.optimizers) if each is plain)
        self._stepped_by_rule = True
        self._begin(self._trainer.fit_loop.epoch_loop.total_batch_idx, plain)
        rule = self._rule
        two_passes = rule is not None and self._may_perturb and not rule.ahead
        before = self._snapshot() if two_passes else None

        def forward_backward() -> Tensor:
            loss = checked_loss(loss_fn(), "The `loss_fn` of two_pass_step")
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
            with self._perturbed_ahead(plain, rule) if ahead and rule is not None else nullcontext():
                loss = forward_backward()
            if rule is not None:
                self._finish(index, plain, rule, replay)
        finally:
            self.sam_pass = 0
        optimizer.step()
        return loss

    def _begin(self, step: int, optimizer: Optimizer) -> None:
        """A step begins: which rule it follows, and whether it may perturb."""
        rule = self._rule = self._module.sam
        self.sam_pass = 0
        self._may_perturb = False
        refuse_rule(rule, type(self._module).__name__)
        self._at = Progress(step)
        if rule is not None:
            if not self._checked:
                self._refuse()
                self._checked = True
            self._at = progress_of(self._trainer, step, optimizer)
            self._rho = value(rule.rho, self._at)
            self._may_perturb = rule.timing.active(self._at)

    def _snapshot(self) -> Snapshot:
        # Asked anew each time: a callback may unfreeze parameters, or add a group, in the middle of training.
        stepped = [param for optimizer in self._trainer.optimizers for param in trained(optimizer)]
        return Snapshot(self._module, stepped, self._module.device)

    def _replay_window(self) -> None:
        last = len(self._window) - 1
        for index, micro_batch in enumerate(self._window):
            micro_batch.before.restore()
            with nullcontext() if index == last else self._unsynchronized():
                output = self._plain_training_step(*micro_batch.args)
                loss = output["loss"] if isinstance(output, dict) else output
                loss = checked_loss(loss, f"Pass two of {type(self._module).__name__}.training_step")
                loss = loss / self._trainer.accumulate_grad_batches
                scaler = self._scaler()
                self._module.backward(loss if scaler is None else scaler.scale(loss))

    def _unsynchronized(self) -> AbstractContextManager[None]:
        if isinstance(self._strategy, ParallelStrategy):
            return self._strategy.block_backward_sync()
        return nullcontext()

    def _perturbed_ahead(self, optimizer: Optimizer, rule: Rule) -> AbstractContextManager[None]:
        """The weights at w + e, by the optimizer's momentum."""
        radii = radii_of(optimizer, self._rho)
        momenta = {param: momentum_of(optimizer, param) for param in radii}
        params = [param for param, momentum in momenta.items() if momentum is not None]
        return rule.perturbed(
            params, [m for m in momenta.values() if m is not None], [radii[param] for param in params], self._at
        )

    def _finish(self, index: int, optimizer: Optimizer, rule: Rule, replay: Callable[[], None]) -> None:
        """From g in ``.grad`` to d in ``.grad``.

        Args:
            index: of the optimizer.
            optimizer: whose parameters are perturbed.
            rule: the rule.
            replay: repeats the forwards and backwards of pass one.
        """
        if rule.ahead:
            return
        params = [param for param in trained(optimizer) if param.grad is not None]
        memory = self._memories[index].of(params)
        unscaled = self._unscaled(rule, [param.grad for param in params if param.grad is not None])
        if params and self._may_perturb and rule.timing.confirmed(unscaled, self._at, memory):
            self._take_pass_two(params, unscaled, optimizer, rule, memory, replay)
        else:
            rule.between_([param.grad for param in params if param.grad is not None], memory)

    def _take_pass_two(
        self,
        params: list[Tensor],
        unscaled: list[Tensor],
        optimizer: Optimizer,
        rule: Rule,
        memory: Memory,
        replay: Callable[[], None],
    ) -> None:
        """Perturb, replay, restore and combine; everything else stays as pass one left it."""
        observers: list[Any] = [each for each in callbacks_of(self._trainer) if _observes(each, self._trainer)]
        keep = rule.combination.needs_grads or bool(observers)
        radii = radii_of(optimizer, self._rho)
        after = self._snapshot()
        grads = self._take_grads([*self._module.parameters(), *params])
        foreign = {param: grad for param, grad in grads.items() if param not in radii}
        perturbed = rule.perturbed(params, unscaled, [radii[param] for param in params], self._at, memory)
        self.sam_pass = 2
        try:
            with muted_loggers(self._trainer), perturbed:
                # e is made: what is not needed after pass two makes room for it. The callers hold the same lists.
                unscaled.clear()
                if not keep:
                    grads.clear()
                replay()
        finally:
            self.sam_pass = 1
            after.restore()
            for other in self._module.parameters():
                if other not in radii:
                    other.grad = foreign.get(other)
        for param in params:
            if param.grad is None:  # Not reached at w + e: its gradient there is zero, while the optimizer steps it.
                param.grad = torch.zeros_like(param)
        if keep:
            reached = [param for param in radii if param.grad is not None]
            base = [grads[param] if param in grads else torch.zeros_like(param) for param in reached]
            step = [param.grad for param in reached if param.grad is not None]
            for observer in observers:
                observer.on_two_pass_gradients(self._trainer, self._module, base, step)
            rule.combine_(base, step, self._at, memory.of(reached))

    def _take_grads(self, params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        """Take the gradients out of ``.grad``."""
        wrapped = self._strategy.model
        # Views of DDP's buckets are overwritten by the next backward.
        in_buckets = isinstance(wrapped, DistributedDataParallel) and wrapped.gradient_as_bucket_view
        grads: dict[Tensor, Tensor] = {}
        for param in params:
            if param.grad is not None:
                grads[param] = param.grad.clone() if in_buckets else param.grad
                param.grad = None
        return grads

    def _scaler(self) -> Any:
        return getattr(self._trainer.precision_plugin, "scaler", None)

    def _unscaled(self, rule: Rule, grads: list[Tensor]) -> list[Tensor]:
        """g without the loss scale, for rules to which its size matters. Never by the scaler, which unscales once."""
        scaler = self._scaler()
        if scaler is None or rule.scale_free or not grads:
            return grads
        scale = scaler.scale(torch.ones((), device=grads[0].device))
        return list(torch._foreach_mul(grads, scale.reciprocal()))


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """The Trainer's own list of its callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _observes(callback: Callback, trainer: pl.Trainer) -> bool:
    """Whether the callback has the hook ``on_two_pass_gradients`` and wants this step's gradients."""
    wants = getattr(callback, "wants_two_pass_gradients", None)
    return hasattr(callback, "on_two_pass_gradients") and (wants is None or wants(trainer))
