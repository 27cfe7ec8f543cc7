"""Where the gradients of one step are while they are not in ``.grad``."""

from collections.abc import Callable, Iterable, Mapping

import lightning.pytorch as pl
from torch import Tensor

from lightning_same.gradients.grads import set_grads
from lightning_same.trainer.distributed import ddp_model, start_mean


class GradientStore:
    """Takes gradients out of ``.grad`` for the other pass, and puts them back.

    Args:
        trainer: the Trainer.

    Attributes:
        base: g of the step, so far as its micro-batches have come, by parameter; empty if nobody needs it.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.base: dict[Tensor, Tensor] = {}
        self._trainer = trainer
        self._aside: dict[Tensor, Tensor] = {}

    def take(self, params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        """Take the gradients of parameters out of ``.grad``."""
        ddp = ddp_model(self._trainer)
        # Views of DDP's buckets are overwritten by the next backward.
        in_buckets = ddp is not None and ddp.gradient_as_bucket_view
        grads: dict[Tensor, Tensor] = {}
        for param in params:
            if param.grad is not None:
                grads[param] = param.grad.clone() if in_buckets else param.grad
                param.grad = None
        return grads

    def set_aside(self, params: Iterable[Tensor]) -> None:
        """Take what former micro-batches have gathered out of ``.grad``, for this one's own gradient to be known."""
        self._aside = self.take(params)

    def take_up(self) -> None:
        """Put back what `set_aside` has taken, for more to be added."""
        set_grads(self._aside)
        self._aside = {}

    def add_to_base(self, grads: Mapping[Tensor, Tensor]) -> None:
        """Add a micro-batch's g to that of the step."""
        for param, grad in grads.items():
            self.base[param] = self.base[param].add_(grad) if param in self.base else grad

    def average_base(self) -> Callable[[], None]:
        """Begin to average g over the processes.

        Returns:
            To be called when it is needed, which waits for the average.
        """
        if not self.base:
            return lambda: None
        finish = start_mean(list(self.base.values()))
        # The reduction works on a copy: that g needs no room of its own now.
        params, self.base = list(self.base), {}

        def arrive() -> None:
            self.base = dict(zip(params, finish(), strict=True))

        return arrive
