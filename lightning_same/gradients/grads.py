"""Reading and writing ``.grad`` of many parameters."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def set_grads(grads: Mapping[Tensor, Tensor | None]) -> None:
    """Put gradients into ``.grad``."""
    for param, grad in grads.items():
        param.grad = grad


def add_partial_grads(params: Iterable[Tensor]) -> None:
    """Add up gradients that tensor parallelism has left as summands on several processes."""
    for param in params:
        grad = param.grad
        if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
            param.grad = grad.redistribute(param.device_mesh, param.placements)


def grads_of(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [param.grad for param in params if param.grad is not None]


def fill_missing_grads(params: Iterable[Tensor]) -> None:
    """Give a gradient of 0 to parameters that have none."""
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
