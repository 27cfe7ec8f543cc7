"""The two doors at which Lightning knocks: automatic optimization, and manual optimization."""

import abc
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_same.replay.batch import copy_of
from lightning_same.replay.fingerprint import fingerprint
from lightning_same.replay.frozen import FrozenCopies
from lightning_same.replay.undisturbed import ReplayState
from lightning_same.trainer.distributed import ddp_model, unsynchronized
from lightning_same.trainer.loop import batches_seen, is_accumulating, opens_window, skips_backward
from lightning_same.trainer.optimizers import total_batches, total_steps
from lightning_same.trainer.patches import replace_training_step, restore_training_step
from lightning_same.trainer.precision import loss_scale
from lightning_same.trainer.training_step import check_loss, loss_in
from lightning_same.two_pass.checks import EVALUATES_SEVERAL_TIMES, check_optimizer
from lightning_same.two_pass.fit import Fit
from lightning_same.two_pass.replay_check import check_replay
from lightning_same.two_pass.step import Step, TwoPassStep, open_step


class MicroBatch(NamedTuple):
    """What pass two needs to repeat a training step.

    Attributes:
        args: a copy of those of the strategy's training step, as they were before pass one.
        before: the state just before pass one.
        buffers_synced: whether DDP broadcast the buffers then.
    """

    args: tuple[Any, ...]
    before: ReplayState
    buffers_synced: bool


class Route(abc.ABC):
    """How Lightning's calls during a fit become the methods of a `Step`.

    Args:
        fit: the fit.

    Attributes:
        fit: the same.
        step: the step that runs, or the last one; None before the first.
    """

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.step: Step | None = None

    @property
    def sam_pass(self) -> int:
        """1 in pass one, 2 in pass two, 0 outside of steps that take two."""
        return 0 if self.step is None else self.step.sam_pass

    @abc.abstractmethod
    def end_batch(self) -> None:
        """A batch has ended, in a step of the optimizer or not."""

    @abc.abstractmethod
    def close(self) -> None:
        """The fit ends, maybe by an error: everything is put back."""


class AutomaticRoute(Route):
    """Automatic optimization: Lightning calls `training_step` and, after pass one's backward, `after_backward`.

    A window is the micro-batches of one step. When the last has had its backward, the weights are perturbed by the
    accumulated gradient and all are replayed, which equals one pass over one large batch; or that happens after each
    micro-batch, if the module's `TwoPassOptions` say so.

    Args:
        fit: the fit.
    """

    def __init__(self, fit: Fit) -> None:
        super().__init__(fit)
        self._window: list[MicroBatch] = []
        self._frozen = FrozenCopies()
        self._finished_batch = -1
        self._has_stepped = True
        # Not the Trainer's hooks: while it looks for a batch size, no callback hears of a batch.
        self._step_hooks = [
            optimizer.register_step_post_hook(self._stepped)
            for optimizer in fit.trainer.optimizers
            if isinstance(optimizer, Optimizer)
        ]
        self._start: Mapping[str, str] | None = None
        self._losses: list[Tensor] = []
        self._pass_one: AbstractContextManager[None] | None = None
        self._own_training_step = replace_training_step(fit.trainer, self.training_step)

    def training_step(self, *args: Any) -> Any:
        """Pass one's forward."""
        self._end_pass_one()
        trainer = self.fit.trainer
        # A fit that resumes inside a window opens its step at that micro-batch.
        if self.step is None or opens_window(trainer):
            self._close_window()
            self.step = open_step(self.fit, 0, trainer.global_step, total_steps(trainer))
        step = self.step
        if skips_backward(trainer):
            return self._own_training_step(*args)
        if step.rule is not None and self._finished_batch == batches_seen(trainer) and not self._has_stepped:
            name, optimizer = type(self.fit.module).__name__, trainer.optimizers[0]
            raise RuntimeError(f"{name}: {type(optimizer).__name__} {EVALUATES_SEVERAL_TIMES}")
        before: ReplayState | None = None
        if step.replays:
            self._window.append(self._micro_batch(args))
            before = self._window[-1].before
            if step.checks_replay and self._start is None:
                self._start = fingerprint(self.fit.module)
        # A context that ends elsewhere: after the backward, which Lightning calls.
        pass_one = step.first_pass(before)
        pass_one.__enter__()
        self._pass_one = pass_one
        output = self._own_training_step(*args)
        if output is None:
            # No backward comes for this micro-batch. The step is still taken with what the others have gathered.
            del self._window[-1:]
            if not self._window:
                self._start = None  # The check of the replay begins with the next micro-batch.
            self.after_backward()
        return output

    def after_backward(self, loss: Tensor | None = None) -> None:
        """Take pass two if it is due, and finish the step if that is.

        Args:
            loss: that of the backward, scaled as it was; None if the training step has returned None.
        """
        self._end_pass_one()
        step = self.step
        assert step is not None
        due = not is_accumulating(self.fit.trainer)
        if self._start is not None and loss is not None:
            self._losses.append(loss.detach().clone())
        if self._window and (due or step.by_micro_batch):
            if self._start is not None and isinstance(step, TwoPassStep):
                replay = partial(self._replay, last=False)
                check_replay(step, self._start, self._window[0].before.restore, replay, self._losses)
                self.fit.is_replay_checked, self._start = True, None
            step.second_pass(self._replay, self._release, last=due)
            self._close_window()
        step.end_micro_batch()
        if due:
            step.finish()
            self._finished_batch, self._has_stepped = batches_seen(self.fit.trainer), False

    def _stepped(self, *_: Any) -> None:
        self._has_stepped = True

    @override
    def end_batch(self) -> None:
        if self.step is not None and not is_accumulating(self.fit.trainer):
            self.step.commit()

    @override
    def close(self) -> None:
        self._end_pass_one()
        for hook in self._step_hooks:
            hook.remove()
        if self.step is not None:
            self.step.cancel()
        restore_training_step(self.fit.trainer, self._own_training_step)

    def _micro_batch(self, args: tuple[Any, ...]) -> MicroBatch:
        fit = self.fit
        ddp = ddp_model(fit.trainer)
        before = ReplayState(
            fit.trainer, fit.module, fit.stepped_parameters(), latest=fit.inventory, frozen=self._frozen
        )
        return MicroBatch(copy_of(args), before, ddp is not None and ddp.require_forward_param_sync)

    def _end_pass_one(self) -> None:
        if self._pass_one is not None:
            pass_one, self._pass_one = self._pass_one, None
            pass_one.__exit__(None, None, None)

    def _close_window(self) -> None:
        self._window = []
        self._frozen.forget()

    def _release(self, params: Sequence[Tensor]) -> None:
        for micro_batch in reversed(self._window):  # The values before the first one are those that stay.
            micro_batch.before.release(params)

    def _replay(self, here: ReplayState | None = None, *, last: bool = True) -> list[Tensor]:
        """Repeat the window's forwards and backwards.

        Args:
            here: the state that was just taken, if one was.
            last: whether nobody replays them again, so that the training step may write to the batches.

        Returns:
            The losses, scaled as for pass one's backward; none if nobody replays them again.
        """
        module, trainer = self.fit.module, self.fit.trainer
        losses: list[Tensor] = []
        ddp = ddp_model(trainer)
        for micro_batch in self._window:
            micro_batch.before.restore(here)
            here = None  # The forward may change it.
            if ddp is not None:
                ddp.require_forward_param_sync = micro_batch.buffers_synced
            # The last one synchronizes the gradients. While more micro-batches follow, Lightning's own context without
            # synchronization is around all of this.
            synchronizes = micro_batch is self._window[-1]
            with nullcontext() if synchronizes else unsynchronized(trainer.strategy):
                output = self._own_training_step(*(micro_batch.args if last else copy_of(micro_batch.args)))
                source = f"Pass two of {type(module).__name__}.training_step"
                loss = check_loss(loss_in(output, source), source)
                if trainer.accumulate_grad_batches > 1:
                    loss = loss / trainer.accumulate_grad_batches
                scale = loss_scale(trainer, loss.device)
                loss = loss if scale is None else loss * scale
                if not last:
                    losses.append(loss.detach())
                module.backward(loss)
            if not synchronizes:
                # As in pass one, where it may change the gradients gathered so far. After the last, Lightning calls it.
                module.on_after_backward()
        return losses


class ManualRoute(Route):
    """Manual optimization: the module's own training step calls `two_pass_step`, for one optimizer or several.

    Args:
        fit: the fit.
    """

    def __init__(self, fit: Fit) -> None:
        super().__init__(fit)
        self._has_stepped = False
        self._batch = -1
        self._steps_at_batch = 0

    def two_pass_step(self, loss_fn: Callable[[], Tensor], optimizer: Optimizer | LightningOptimizer) -> Tensor:
        """`SAMMixin.two_pass_step`."""
        fit, module = self.fit, self.fit.module
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        check_optimizer(plain, module)
        index = next((index for index, known in enumerate(fit.trainer.optimizers) if known is plain), None)
        if index is None:
            raise ValueError(
                f"{type(module).__name__}: two_pass_step needs one of `self.optimizers()`, got another"
                f" {type(plain).__name__}. Return it from `configure_optimizers`."
            )
        batch = batches_seen(fit.trainer)
        if batch != self._batch:
            self._batch, self._steps_at_batch = batch, fit.trainer.global_step
        total = total_batches(fit.trainer, batch, self._steps_at_batch)
        step = self.step = open_step(fit, index, batch, total)
        before = (
            ReplayState(fit.trainer, module, fit.stepped_parameters(), latest=fit.inventory) if step.replays else None
        )

        start = fingerprint(module) if step.checks_replay else None

        def forward_backward() -> Tensor:
            loss = check_loss(loss_fn(), "The `loss_fn` of two_pass_step")
            module.manual_backward(loss)
            return loss.detach()

        def replay(here: ReplayState | None = None) -> list[Tensor]:
            assert before is not None
            before.restore(here)
            return [forward_backward()]

        optimizer.zero_grad()
        with step.first_pass(before):
            loss = forward_backward()
        if start is not None and before is not None and isinstance(step, TwoPassStep):
            check_replay(step, start, before.restore, replay, [loss])
            fit.is_replay_checked = True
        step.second_pass(replay, _nothing if before is None else before.release)
        step.finish()
        optimizer.step()
        step.commit()
        return loss

    def before_step(self) -> None:
        """Check, before an optimizer steps, that the module knows of `two_pass_step`.

        Raises:
            RuntimeError: if no method of the module mentions it, and nobody has called it.
        """
        self._has_stepped = True
        if self.fit.module.sam is not None and self.step is None and not _mentions_two_pass_step(self.fit.module):
            raise self._steps_by_itself()

    @override
    def end_batch(self) -> None:
        """A batch has ended.

        Raises:
            RuntimeError: if the module has stepped without `two_pass_step`.
        """
        if self.fit.module.sam is not None and self.step is None and self._has_stepped:
            raise self._steps_by_itself()

    def _steps_by_itself(self) -> RuntimeError:
        module = self.fit.module
        return RuntimeError(
            f"{type(module).__name__} is in manual optimization and takes its steps without `two_pass_step`, so it does"
            f" not train with {module.sam!r}. Call `self.two_pass_step(loss_fn, optimizer)` in place of zero_grad,"
            " manual_backward and step, or set `sam = None`."
        )

    @override
    def close(self) -> None:
        if self.step is not None:
            self.step.cancel()


def _nothing(params: Sequence[Tensor]) -> None:
    pass


def _mentions_two_pass_step(module: Any) -> bool:
    """Whether a method of the module's own classes has the name in its code."""
    own = [cls for cls in type(module).__mro__ if "two_pass_step" not in vars(cls)]
    codes = [function.__code__ for cls in own for function in vars(cls).values() if inspect.isfunction(function)]
    while codes:
        code = codes.pop()
        if "two_pass_step" in code.co_names:
            return True
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return False
