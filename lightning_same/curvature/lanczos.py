"""Lanczos on flat vectors: the extreme eigenvalues, and the spectral measure, of an operator known by its products."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.curvature.vectors import dots, scalar_dtype

ROUNDING = 32
"""How many units in the last place of the largest eigenvalue a product is trusted to: below that a residual is noise,
and the Krylov space is taken to be invariant."""


class Ritz(NamedTuple):
    """Eigenpairs of the operator restricted to the Krylov space; m of them, in ascending order, float64 on the CPU.

    Attributes:
        values: shape (m,). The largest is a lower bound on the operator's largest eigenvalue, the smallest an upper
            bound on its smallest, to rounding.
        residuals: shape (m,); the norm of A x - value * x, for x the unit Ritz vector. An eigenvalue of the operator
            lies within this distance of the value.
        coordinates: shape (m, m); column i holds Ritz vector i in the Lanczos basis.
    """

    values: Tensor
    residuals: Tensor
    coordinates: Tensor


class Lanczos:
    """A Krylov space, grown by one product at a time.

    Every new vector is orthogonalised against all before it, twice: in floating point the three-term recurrence alone
    loses orthogonality as soon as an eigenvalue converges, and then finds it again and again. m steps cost m products
    and about 4 m^2 n operations, and hold m vectors of n elements.

    Args:
        matvec: the product with a symmetric operator; must not change its argument.
        start: the first vector, any length but 0.
        mean_over_processes: makes scalars the same on all processes, where several run the same Lanczos. Equal vectors
            give equal scalars on equal machines; a last bit that differs would let one process stop and another wait
            for it.

    Attributes:
        basis: the orthonormal vectors so far.
        exhausted: whether no further vector exists: the space is invariant and its Ritz values are eigenvalues, or a
            product was not finite.
        finite: whether all products were.

    References:
        Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        start: Tensor,
        mean_over_processes: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.basis: list[Tensor] = []
        self.exhausted = False
        self.finite = True
        self._matvec = matvec
        self._mean_over_processes = mean_over_processes
        self._next = start / dots([start], start).sqrt().to(start.dtype)
        self._diagonal: list[float] = []
        self._beside: list[float] = []

    @property
    def noise(self) -> float:
        """The rounding of a product: what no residual can be expected to fall below."""
        eps = torch.finfo(self._next.dtype).eps
        return ROUNDING * eps * max(map(abs, self._diagonal + self._beside), default=0.0)

    def step(self) -> None:
        """Add a vector to the space.

        The host reads two numbers. To hide that read one would have to start the next product before it, and to throw
        that product away at the end, which costs more than all the reads.
        """
        self.basis.append(self._next)
        vector = self._matvec(self._next).clone()
        along = torch.zeros((), dtype=scalar_dtype(vector.device), device=vector.device)
        for _ in range(2):
            parts = dots(self.basis, vector)
            for column, part in zip(self.basis, parts.to(vector.dtype).unbind(), strict=True):
                vector.addcmul_(column, part, value=-1)
            along = along + parts[-1]
        scalars = torch.stack([along, dots([vector], vector)[0].sqrt()])
        diagonal, beside = (
            scalars if self._mean_over_processes is None else self._mean_over_processes(scalars)
        ).tolist()
        self._diagonal.append(diagonal)
        self._beside.append(beside)
        self.finite = math.isfinite(diagonal) and math.isfinite(beside)
        self.exhausted = not self.finite or len(self.basis) == vector.numel() or beside <= self.noise
        if not self.exhausted:
            self._next = vector.div_(beside)

    def ritz(self) -> Ritz:
        """The Ritz pairs of the space as it stands."""
        matrix = torch.diag(torch.tensor(self._diagonal, dtype=torch.float64))
        beside = torch.tensor(self._beside[:-1], dtype=torch.float64)
        values, coordinates = torch.linalg.eigh(matrix + torch.diag(beside, 1) + torch.diag(beside, -1))
        return Ritz(values, self._beside[-1] * coordinates[-1].abs(), coordinates)

    def vector(self, coordinates: Tensor) -> Tensor:
        """The vector that has these coordinates, shape (m,), in the basis."""
        total = torch.zeros_like(self.basis[0])
        for column, coordinate in zip(self.basis, coordinates.tolist(), strict=True):
            total.add_(column, alpha=coordinate)
        return total
