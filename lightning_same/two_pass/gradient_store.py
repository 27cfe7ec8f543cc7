"""Where the gradients of one step are while they are not in ``.grad``."""

import sys
from collections.abc import Callable, Iterable, Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_same.gradients.grads import set_grads
from lightning_same.gradients.sharding import local
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

    def take(self, params: Iterable[Tensor], *, until_backward: bool = False) -> dict[Tensor, Tensor]:
        """Take the gradients of parameters out of ``.grad``.

        Args:
            params: the parameters.
            until_backward: whether nobody needs them once the next backward has begun.
        """
        grads: dict[Tensor, Tensor] = {}
        for param in params:
            if param.grad is not None:
                grads[param] = param.grad
                param.grad = None
        if grads and not until_backward and backward_overwrites_grads(self._trainer):
            return {param: grad.clone() for param, grad in grads.items()}
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


def backward_overwrites_grads(trainer: pl.Trainer) -> bool:
    """Whether the next backward writes to the memory of these gradients: DDP's buckets, or the pool of CUDA graphs."""
    ddp = ddp_model(trainer)
    in_buckets = ddp is not None and ddp.gradient_as_bucket_view
    return in_buckets or uses_cuda_graphs(trainer.strategy.root_device)


def uses_cuda_graphs(device: torch.device) -> bool:
    """Whether ``torch.compile(mode="reduce-overhead")`` has recorded CUDA graphs on a device."""
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    return device.type == "cuda" and trees is not None and trees.get_manager(device.index or 0, False) is not None


def check_apart(base: Iterable[Tensor], perturbed: Iterable[Tensor], name: str) -> None:
    """Check that g is still there after pass two.

    Args:
        base: g.
        perturbed: s, aligned with it.
        name: of the module's class, for the message.

    Raises:
        RuntimeError: if both lie in the same memory, which a CUDA graph of the user's own writes to.
    """
    for g, s in zip(base, perturbed, strict=True):
        address = local(g).data_ptr()
        # An empty tensor has none.
        if address and address == local(s).data_ptr():
            raise RuntimeError(
                f"{name}: pass two has written its gradient where that of pass one was, as CUDA graphs by"
                " torch.cuda.make_graphed_callables do. Use torch.compile instead, or a rule that needs no gradient of"
                " pass one after it, such as SAM."
            )
