"""The mixin, and how it takes its place in a Trainer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_same.rules.base import Rule
from lightning_same.trainer.loop import callbacks_of
from lightning_same.trainer.training_step import check_loss
from lightning_same.two_pass.checks import check_inner_modules, check_module
from lightning_same.two_pass.controller import TwoPass
from lightning_same.two_pass.options import TwoPassOptions

set_trainer = vars(pl.LightningModule)["trainer"].fset


class SAMMixin(pl.LightningModule):
    """Trains a LightningModule by a SAM-family rule, under any Trainer feature that it was trained with before.

    Put it first among the bases; the module itself stays as it is::

        class Net(SAMMixin, LitNet):
            sam = SAME(ckpt=1, rho=0.1)

    In automatic optimization the second pass runs inside the `backward` hook: Lightning still does everything else once
    per step. In manual optimization, call `two_pass_step`.

    Pass two replays pass one: same batch, random numbers and buffers, only the weights are at w + e. It leaves no
    trace: buffers, random state, metrics, attributes and logs are those of pass one. The weights come back bit for
    bit, also when pass two raises.

    A parameter group may have a radius of its own under the key ``"rho"``; with 0 the group is not perturbed and not
    counted in the norm. (For an optimizer with an option of that name itself, such as Adadelta, the key is its own.)

    Attributes:
        sam: the rule, as a class or instance attribute; None trains without SAM. May be replaced between steps.
        two_pass: how the passes run, as opposed to which rule they serve.
    """

    sam: Rule | None = None
    two_pass: TwoPassOptions = TwoPassOptions()
    _two_pass: "TwoPass | None" = None

    @property
    def sam_pass(self) -> int:
        """Which pass a training step is in: 1 at w, 2 at w + e, 0 outside of steps that take two.

        Code with effects that pass two cannot undo, such as a counter in a file, asks it.
        """
        return self._two_pass.sam_pass if self._two_pass is not None else 0

    def two_pass_step(self, loss_fn: Callable[[], Tensor], optimizer: Optimizer | LightningOptimizer) -> Tensor:
        """One step of manual optimization: zero the gradients, both passes, combine, ``optimizer.step()``.

        Only the parameters of this optimizer are perturbed and stepped; other gradients are left as pass one makes
        them. To clip, override `on_before_optimizer_step` and call ``self.clip_gradients`` there. With ``sam = None``
        it is the usual zero_grad, manual_backward and step. A rule's timing counts batches here, not steps, since there
        may be any number of optimizer steps to a batch.

        Args:
            loss_fn: takes no argument, runs the forward and returns a scalar loss. It is called twice.
            optimizer: one of ``self.optimizers()``.

        Returns:
            The loss at w, detached.

        Raises:
            RuntimeError: if the module is in automatic optimization.
            TypeError: if the loss is not a tensor.
            ValueError: if the loss is not a scalar.
        """
        if self.automatic_optimization or self._two_pass is None:
            raise RuntimeError(
                f"{type(self).__name__}.two_pass_step belongs to manual optimization inside `training_step`. Either set"
                " `self.automatic_optimization = False` in `__init__`, or return the loss from `training_step` and let"
                " the mixin do both passes."
            )
        return self._two_pass.manual_step(loss_fn, optimizer)

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Pass one and, when the step is due, pass two."""
        if self._two_pass is None or not self.automatic_optimization or self.sam_pass == 2:
            super().backward(loss, *args, **kwargs)
            return
        check_loss(loss, f"{type(self).__name__}.training_step")
        super().backward(loss, *args, **kwargs)
        self._two_pass.after_pass_one()

    @override
    def log(self, *args: Any, **kwargs: Any) -> None:
        if self.sam_pass != 2:
            super().log(*args, **kwargs)

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.sam_pass != 2:
            super().print(*args, **kwargs)

    @property
    @override
    def trainer(self) -> pl.Trainer:
        """The Trainer. Lightning sets it when a run begins, before any hook: there the mixin takes its place."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        set_trainer(self, trainer)
        if isinstance(trainer, pl.Trainer):
            callbacks = callbacks_of(trainer)
            conductor = (
                next((each for each in callbacks if isinstance(each, TwoPassCallback)), None) or TwoPassCallback()
            )
            callbacks[:] = [conductor, *(each for each in callbacks if each is not conductor)]

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_two_pass", None)
        return state


class TwoPassCallback(Callback):
    """Gives a mixed module its `TwoPass` for the length of a fit. The mixin adds it to the Trainer by itself.

    A callback of its own, and not hooks of the module: users override those without calling super. It stands first
    among the callbacks, so that the others find the weights at w after an error.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        """What the checkpoint file that training resumes from says of the rule; None if there is no such file."""
        self._left: dict[str, Any] = {}
        """What the last fit has left to say in files that are written after it."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._loaded, self._left = None, {}

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_inner_modules(pl_module, SAMMixin)
        if isinstance(pl_module, SAMMixin):
            check_module(pl_module, trainer, SAMMixin)
            pl_module._two_pass = TwoPass(pl_module, trainer, partial(check_module, pl_module, trainer, SAMMixin))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, SAMMixin) and pl_module._two_pass is not None:
            # Here, for strategies that shard parameters read the file after `on_fit_start`.
            if self._loaded is not None:
                _tell_of_another_rule(self._loaded.get("rule"), pl_module.sam)
                pl_module._two_pass.load_state_dict(self._loaded)
            pl_module._two_pass.count_from_here()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, SAMMixin) and pl_module._two_pass is not None:
            pl_module._two_pass.step_is_taken()
            pl_module._two_pass.log()
            pl_module._two_pass.check_manual_steps()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if isinstance(pl_module, SAMMixin):
            state = self._left if pl_module._two_pass is None else pl_module._two_pass.state_dict()
            if state:
                checkpoint["lightning_same"] = state

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = checkpoint.get("lightning_same", {})

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release(pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release(pl_module)

    def _release(self, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, SAMMixin) and pl_module._two_pass is not None:
            pl_module._two_pass.release()
            self._left = pl_module._two_pass.state_dict()
            pl_module._two_pass = None


def _tell_of_another_rule(before: str | None, rule: Rule | None) -> None:
    """It is the user's right, and might be a mistake."""
    now = None if rule is None or rule.rho == 0 else repr(rule)
    if before != now:
        rank_zero_info(
            f"The checkpoint file was written by training {_by(before)}; from here on it goes on {_by(now)}."
        )


def _by(rule: str | None) -> str:
    return "without SAM" if rule is None else f"by {rule}"
