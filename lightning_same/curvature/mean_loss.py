"""A mean loss over batches and processes: its value and its gradient at the weights, or beside them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lightning_same.curvature.differentiable import (
    check_dense,
    custom_functions,
    dense_embeddings,
    evaluated,
    twice_differentiable,
)
from lightning_same.curvature.float64 import Float64Error, in_float64
from lightning_same.curvature.samples import sample_counts
from lightning_same.curvature.vectors import scalar_dtype
from lightning_same.replay.random_state import random_state

Precision = torch.dtype | Literal["float64", "auto"] | None


class Forward(NamedTuple):
    """A loss with its history.

    Attributes:
        loss: the loss of one batch.
        leaves: the tensors to derive it by, one for each parameter: the parameters, or copies of them in float64.
    """

    loss: Tensor
    leaves: Sequence[Tensor]


class MeanLoss:
    """The mean of a loss over the samples of all batches and processes. `Hessian` documents the arguments."""

    def __init__(
        self,
        loss_fn: Callable[..., Tensor],
        params: Iterable[Tensor] | nn.Module,
        batches: Sequence[Any] | None = None,
        *,
        samples: int | Sequence[int] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        dtype: Precision = None,
    ) -> None:
        self._module = params if isinstance(params, nn.Module) else None
        every = params.parameters() if isinstance(params, nn.Module) else params
        self.params = list({id(param): param for param in every if param.requires_grad}.values())
        if not self.params:
            raise ValueError("Hessian: `params` holds no tensor that requires a gradient.")
        if any(param.is_complex() for param in self.params):
            raise ValueError("Hessian: complex parameters are not supported; keep them as real, by torch.view_as_real.")
        self.size = sum(param.numel() for param in self.params)
        self.device = self.params[0].device
        self.dtype = torch.float32
        for param in self.params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)
        self._copies = _is_float64(dtype, self.device) and any(param.dtype != torch.float64 for param in self.params)
        if self._copies:
            self.dtype = torch.float64
        if batches is not None and not isinstance(batches, Sequence):
            raise TypeError(
                f"Hessian: `batches` must be a sequence, got {type(batches).__name__}. Every product goes through the"
                " same batches; take them once, such as `list(itertools.islice(loader, 8))`."
            )
        self._losses: list[Callable[[], Tensor]] = (
            [loss_fn] if batches is None else [partial(loss_fn, batch) for batch in batches]
        )
        self._sum = reduce
        counts = sample_counts(batches, samples, one_process=reduce is None)
        total, self._processes = float(sum(counts)), 1.0
        if reduce is not None:
            summands = torch.tensor([total, 1.0], dtype=scalar_dtype(self.device), device=self.device)
            total, self._processes = reduce(summands).tolist()
        if total <= 0:
            raise ValueError("Hessian: there is not one sample to measure on.")
        self.samples = round(total)
        self._weights = [count / total for count in counts]
        self._functions: list[str] | None = None
        self._offset: list[Tensor] | None = None
        self._devices = dict.fromkeys([self.device, *[param.device for param in self.params]])
        self._same_numbers = random_state(*self._devices)

    def loss(self) -> float:
        """The mean loss at the present weights, over all batches and processes, by a forward of its own."""
        with self._of_all_processes(), self._differentiable(), torch.no_grad():
            total = torch.zeros(1, dtype=scalar_dtype(self.device), device=self.device)
            for loss_fn, weight in zip(self._losses, self._weights, strict=True):
                total += weight * self._forward(loss_fn).loss.reshape(1)
        return (total if self._sum is None else self._sum(total)).item()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The mean loss and its flat gradient at the present weights, by one forward-backward pass of their own."""
        with self._of_all_processes(), self._differentiable():
            total = torch.zeros(1 + self.size, dtype=self.dtype, device=self.device)
            for loss_fn, weight in zip(self._losses, self._weights, strict=True):
                loss, leaves = self._forward(loss_fn)
                grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
                check_dense(grads)
                total.add_(self._flat([loss, *grads]), alpha=weight)
        return self._summed(total)

    def _summed(self, total: Tensor) -> tuple[float, Tensor]:
        """The loss and the gradient of all processes, from those of this one."""
        total = total if self._sum is None else self._sum(total)
        return total[0].item(), total[1:]

    @contextmanager
    def perturbed(self, offset: Tensor) -> Iterator[None]:
        """The weights moved by a flat vector, within a ``with`` block. In float64 it is the copies that are moved."""
        if self._copies:
            self._offset = self.split(offset)
            try:
                yield
            finally:
                self._offset = None
            return
        before = [param.detach().clone() for param in self.params]
        try:
            with torch.no_grad():
                torch._foreach_add_(self.params, self.split(offset))
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.params, before)

    def weights(self) -> Tensor:
        """A copy of the parameters as a flat vector."""
        return self._flat(self.params)

    def mean_over_processes(self, scalars: Tensor) -> Tensor:
        """The mean of scalars over processes, which is the same on all of them."""
        return scalars if self._sum is None else self._sum(scalars) / self._processes

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into tensors of the parameters' shapes and devices; in float64 of that dtype."""
        cuts = torch.split(vector, [param.numel() for param in self.params])
        return [
            cut.view(param.shape).to(param.device, torch.float64 if self._copies else param.dtype)
            for cut, param in zip(cuts, self.params, strict=True)
        ]

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.detach().to(self.device, self.dtype).reshape(-1) for tensor in tensors])

    def _forward(self, loss_fn: Callable[[], Tensor]) -> Forward:
        """The loss of one batch, with its history if gradients are enabled."""
        if self._copies:
            leaves = [param.detach().double() for param in self.params]
            if self._offset is not None:
                torch._foreach_add_(leaves, self._offset)
            leaves = [leaf.requires_grad_() for leaf in leaves]
            loss = in_float64(loss_fn, self.params, leaves)
        else:
            loss, leaves = loss_fn(), self.params
        if self._functions is None and torch.is_grad_enabled():
            self._functions = custom_functions(loss)
        return Forward(loss, leaves)

    @contextmanager
    def _of_all_processes(self) -> Iterator[None]:
        """What cannot be had in float64 on one process is an error on all, none of which waits for its summand then."""
        if self._sum is None or not self._copies:
            yield
            return
        failure = None
        try:
            yield
        except Float64Error as error:
            failure = error
        failures = self._sum(torch.tensor([float(failure is not None)], device=self.device)).item()
        if failure is not None:
            raise failure
        if failures:
            raise Float64Error("Hessian: on another process the loss cannot be had in float64.")

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """A forward that has a second derivative and draws the same random numbers each time."""
        before = random_state(*self._devices)
        try:
            for put_back in self._same_numbers:
                put_back()
            with twice_differentiable(self.device), evaluated(self._module), dense_embeddings(self._module):
                yield
        except RuntimeError as error:
            # Recomputed in another dtype than its input, a layer refuses, or the checkpoint tells afterwards.
            recomputed = isinstance(error, CheckpointError) or re.search(r"dtype|type \(", str(error))
            if isinstance(error, Float64Error) or not (self._copies and recomputed):
                raise
            raise Float64Error(
                "Hessian: activation checkpointing recomputes its forward in the model's own dtype. Switch it off while"
                " curvature is measured in float64."
            ) from error
        finally:
            for put_back in before:
                put_back()


def _is_float64(dtype: Precision, device: torch.device) -> bool:
    """Whether a dtype asks for float64."""
    if dtype not in (None, "auto", "float64", torch.float64):
        raise ValueError(f'Hessian: `dtype` must be "auto", "float64", torch.float64 or None, got {dtype!r}.')
    if dtype in (None, "auto"):
        return False
    if device.type == "mps":
        raise Float64Error("Hessian: there is no float64 on MPS. Move the model and the batches to the CPU.")
    return True
