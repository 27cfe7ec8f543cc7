"""The mixin."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_same.rules.base import Rule
from lightning_same.trainer.patches import put_first, set_trainer
from lightning_same.trainer.training_step import check_loss
from lightning_same.two_pass.callback import TwoPassCallback
from lightning_same.two_pass.options import TwoPassOptions
from lightning_same.two_pass.routes import AutomaticRoute, ManualRoute, Route


class SAMMixin(pl.LightningModule):
    """Trains a LightningModule with SAM or a variant. Every Trainer feature keeps working.

    List it first among the base classes; the module itself stays as it is::

        class Net(SAMMixin, LitNet):
            sam = SAME(ckpt=1, rho=0.1)

    In automatic optimization the second pass runs inside the `backward` hook; Lightning does everything else once per
    step. In manual optimization, call `two_pass_step`.

    Pass two repeats pass one with the same batch, random numbers and buffers; only the weights are at w + e. It leaves
    no trace: buffers, random state, metrics, attributes and logs are those of pass one. The weights are restored bit
    for bit, also when pass two raises.

    A parameter group may have its own radius under the key ``"rho"``; with 0 the group is not perturbed and not counted
    in the norm. (An optimizer with an option of that name, such as Adadelta, keeps it for itself.)

    Attributes:
        sam: the rule, as a class or instance attribute; None trains without SAM. May be replaced between steps.
        two_pass: how the passes run, as opposed to which rule they serve.
    """

    # For `to_torchscript`, which compiles every attribute and property that is not named here.
    __jit_ignored_attributes__ = ["sam", "two_pass", "_route"]  # noqa: RUF012
    __jit_unused_properties__ = [*pl.LightningModule.__jit_unused_properties__, "sam_pass"]  # noqa: RUF012

    sam: Rule | None = None
    two_pass: TwoPassOptions = TwoPassOptions()
    _route: Route | None = None

    @property
    def sam_pass(self) -> int:
        """Which pass a training step is in: 1 at w, 2 at w + e, 0 outside of steps that take two.

        Ask it before a side effect that cannot be undone, such as a write to a file.
        """
        return 0 if self._route is None else self._route.sam_pass

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
        if not isinstance(self._route, ManualRoute):
            raise RuntimeError(
                f"{type(self).__name__}.two_pass_step belongs to manual optimization inside `training_step`. Either set"
                " `self.automatic_optimization = False` in `__init__`, or return the loss from `training_step` and let"
                " the mixin do both passes."
            )
        return self._route.two_pass_step(loss_fn, optimizer)

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Pass one and, when the step is due, pass two."""
        route = self._route
        if not isinstance(route, AutomaticRoute) or route.sam_pass == 2:
            super().backward(loss, *args, **kwargs)
            return
        check_loss(loss, f"{type(self).__name__}.training_step")
        super().backward(loss, *args, **kwargs)
        route.after_backward(loss)

    @property
    @override
    def trainer(self) -> pl.Trainer:
        """The Trainer. Lightning sets it when a run begins, before any hook: there the mixin takes its place."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        set_trainer(self, trainer)
        if isinstance(trainer, pl.Trainer):
            put_first(trainer, TwoPassCallback)

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_route", None)
        return state
