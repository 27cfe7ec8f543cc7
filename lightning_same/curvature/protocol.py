"""What a measure of curvature asks of an operator."""

from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """A real symmetric matrix, known by its products with vectors, such as a `Hessian`."""

    @property
    def size(self) -> int:
        """Number of rows."""
        ...

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples that the loss is a mean over, on all processes. Measures only pass it on."""
        ...

    def __matmul__(self, vector: Tensor, /) -> Tensor:
        """The product with a vector of shape (size,), which stays unchanged."""
        ...

    def mean_over_processes(self, scalars: Tensor, /) -> Tensor:
        """The mean of a tensor over the processes that run the same measure together; on one process, the tensor."""
        ...


class LossOperator(Operator, Protocol):
    """The second derivative of a loss, which knows the first too."""

    def gradient(self) -> Tensor:
        """The gradient of the loss, of shape (size,)."""
        ...
