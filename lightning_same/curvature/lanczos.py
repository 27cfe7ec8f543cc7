"""Lanczos on flat vectors: the extreme eigenvalues, and the spectral measure, of an operator known by its products."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.curvature.vectors import dots, scalar_dtype

ROUNDING = 32
"""How many units in the last place of the largest eigenvalue a product is trusted to: below that a residual is noise,
and the Krylov space is taken to be invariant. And how many times as large as the asymmetry of the products their error
may be: some of it is symmetric, such as that of a probability close to 1."""


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
        self._length = dots([start], start).sqrt()
        self._next = start / self._length.to(start.dtype)
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self._asymmetry = 0.0

    @property
    def noise(self) -> float:
        """The rounding of a product in its last places: what no residual can be expected to fall below."""
        eps = torch.finfo(self._next.dtype).eps
        return ROUNDING * eps * max(map(abs, self._diagonal + self._beside), default=0.0)

    @property
    def rounding(self) -> float:
        """Estimate of the norm of a product's error, with what cancels inside the product.

        u'Av and v'Au are equal but for rounding. Orthogonalisation computes one of them for each pair of basis vectors,
        and the other is an element of the tridiagonal matrix: the difference costs nothing. It is random, and a part of
        the error does not show in it; on ten networks at losses from 1 to 1e-8 the error was at most 43 times, and in
        the median 4 times, the root of the differences' sum of squares.
        """
        return ROUNDING * math.sqrt(self._asymmetry)

    def step(self) -> None:
        """Add a vector to the space.

        The host reads three numbers. To hide that read one would have to start the next product before it, and to throw
        that product away at the end, which costs more than all the reads.
        """
        self.basis.append(self._next)
        vector = self._matvec(self._next).clone()
        along = torch.zeros((), dtype=scalar_dtype(vector.device), device=vector.device)
        asymmetry = along
        for first in (True, False):
            parts = dots(self.basis, vector)
            if first and self._beside:
                # The transposed elements: zeros, and the last one beside the diagonal.
                asymmetry = parts[:-2].square().sum() + (parts[-2] - self._beside[-1]).square()
            for column, part in zip(self.basis, parts.to(vector.dtype).unbind(), strict=True):
                vector.addcmul_(column, part, value=-1)
            along = along + parts[-1]
        scalars = torch.stack([along, dots([vector], vector)[0].sqrt(), asymmetry])
        diagonal, beside, asymmetric = (
            scalars if self._mean_over_processes is None else self._mean_over_processes(scalars)
        ).tolist()
        self._diagonal.append(diagonal)
        self._beside.append(beside)
        self._asymmetry += asymmetric
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

    def bounds(self, failure: float) -> tuple[float, float]:
        r"""Bounds on all eigenvalues of the operator that hold with a certain probability over random starts.

        v_(j+1) = p_j(A) v_1 with polynomials p_j that the tridiagonal matrix defines. An eigenvector u to an eigenvalue
        mu has the coordinate p_j(mu) u'v_1 in v_(j+1), and all its squared coordinates sum to at most 1, so that
        |u'v_1| <= (sum_j p_j(mu)^2)^(-1/2). Beyond the Ritz values the polynomials grow fast: an eigenvalue far above
        would have to hide from a random start better than a random start lets it.

        Args:
            failure: the probability that a bound does not hold, if the start had independent standard normal elements;
                anything may have been added to them.

        Returns:
            The lower and the upper bound.

        References:
            van Dorsselaer, Hochstenbach and van der Vorst, Computing Probabilistic Bounds for Extreme Eigenvalues of
            Symmetric Matrices with the Lanczos Method, SIAM Journal on Matrix Analysis and Applications 2001.
        """
        values = self.ritz().values.tolist()
        floor = self.noise
        if not floor:
            return 0.0, 0.0  # an operator that is 0
        # P(|z| <= t) <= t (2 / pi)^(1/2) for a standard normal z, whatever is added to it.
        target = 2 / math.pi * (self._length.item() / failure) ** 2
        diagonal = self._diagonal
        beside = [max(number, floor) for number in self._beside]
        above = _distance([values[-1] - number for number in diagonal], beside, target, floor)
        below = _distance([number - values[0] for number in diagonal], beside, target, floor)
        return values[0] - below, values[-1] + above

    def vector(self, coordinates: Tensor) -> Tensor:
        """The vector that has these coordinates, shape (m,), in the basis."""
        total = torch.zeros_like(self.basis[0])
        for column, coordinate in zip(self.basis, coordinates.tolist(), strict=True):
            total.add_(column, alpha=coordinate)
        return total


def _distance(gaps: Sequence[float], beside: Sequence[float], target: float, floor: float) -> float:
    """How far beyond the last Ritz value the squares of the orthonormal polynomials sum to a target.

    Args:
        gaps: the Ritz value minus the elements of the diagonal.
        beside: the elements beside the diagonal; > 0.
        target: of the sum.
        floor: a distance that does not matter; > 0.
    """

    def reaches(distance: float) -> bool:
        total, before, now, coupling = 1.0, 0.0, 1.0, 0.0
        for gap, following in zip(gaps, beside, strict=True):
            before, now = now, ((gap + distance) * now - coupling * before) / following
            coupling = following
            total += now * now
            if total >= target:
                return True
        return False

    low, high = 0.0, floor
    while not reaches(high):
        low, high = high, 4 * high
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high
