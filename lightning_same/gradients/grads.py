"""Reading and writing ``.grad`` of many parameters."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_same.gradients.sharding import any_sharded


def set_grads(grads: Mapping[Tensor, Tensor | None]) -> None:
    """Set ``.grad`` of each parameter.

    Args:
        grads: gradients by parameter.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> set_grads({w: torch.ones(2)})
        >>> w.grad
        tensor([1., 1.])
    """
    for param, grad in grads.items():
        param.grad = grad


def add_partial_grads(params: Sequence[Tensor]) -> None:
    """Add up gradients that tensor parallelism has left as summands on several processes.

    ``.grad`` of each `DTensor` parameter gets the parameter's own placement.

    Args:
        params: any parameters; plain tensors are left alone.
    """
    if not any_sharded(params):
        return
    for param in params:
        grad = param.grad
        if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
            param.grad = grad.redistribute(param.device_mesh, param.placements)


def grads_of(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one, in order."""
    return [param.grad for param in params if param.grad is not None]


def dense(grad: Tensor) -> Tensor:
    """A gradient as it is, or a sparse one, such as that of an embedding, with its zeros."""
    return grad.to_dense() if grad.is_sparse else grad


def fill_missing_grads(params: Iterable[Tensor]) -> None:
    """Set ``.grad`` to zeros where it is None.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> fill_missing_grads([w])
        >>> w.grad
        tensor([0., 0.])
    """
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
