r"""Curvature that does not change when the weights are rescaled without changing the function. Plain torch.

If one layer of a network with ReLU is multiplied by 10 and the next one divided by 10, the network is the same function
as before, but the top eigenvalue of its Hessian is another. In units of the weights, T = diag(\|w\|), it is the same.
"""

from torch import Tensor

from lightning_same.curvature.hessian import Hessian


class AdaptiveHessian:
    r"""T H T with T = diag(\|w\| + eta), an operator for every measure of curvature.

    Its top eigenvalue is the adaptive sharpness of second order: the largest e'He over \|\|T^-1 e\|\| = 1. A weight of
    0 is not perturbed unless ``eta`` is above 0. A product costs what one of the Hessian costs.

    Args:
        hessian: the Hessian. T is taken from its parameters here, once.
        eta: added to the size of every weight; >= 0.

    Attributes:
        scale: shape (size,): the diagonal of T.

    Raises:
        ValueError: if ``eta`` is below 0.

    Examples:
        The loss (w_1 w_2 - 1)^2 / 2 is the same at (2, 1/2) and at (4, 1/4), and so is its adaptive top eigenvalue:

        >>> import torch
        >>> from lightning_same import Hessian, top_eigenvalue
        >>> for a in (2.0, 4.0):
        ...     w = torch.tensor([a, 1 / a], dtype=torch.float64, requires_grad=True)
        ...     hessian = Hessian(lambda: (w.prod() - 1) ** 2 / 2, [w])
        ...     round(top_eigenvalue(hessian).value, 4), round(top_eigenvalue(AdaptiveHessian(hessian)).value, 4)
        (4.25, 2.0)
        (16.0625, 2.0)

    References:
        Kwon, Kim, Park and Choi, ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
        Neural Networks, ICML 2021, arXiv:2102.11600.
    """

    def __init__(self, hessian: Hessian, eta: float = 0.0) -> None:
        self._hessian = hessian
        self._eta = eta
        self.scale = element_scale(hessian, eta)
        self.size, self.device, self.dtype, self.samples = hessian.size, hessian.device, hessian.dtype, hessian.samples

    def __matmul__(self, vector: Tensor) -> Tensor:
        """T H T v."""
        return self.scale * (self._hessian @ (self.scale * vector))

    def gradient(self) -> Tensor:
        """T g."""
        return self.scale * self._hessian.gradient()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss, and T g, by one forward-backward pass."""
        loss, gradient = self._hessian.loss_and_gradient()
        return loss, self.scale * gradient

    def mean_over_processes(self, scalars: Tensor) -> Tensor:
        """The mean of scalars over processes."""
        return self._hessian.mean_over_processes(scalars)

    @property
    def finer(self) -> "AdaptiveHessian | None":
        """What to measure where rounding decides, as `Hessian.finer`."""
        return None if self._hessian.finer is None else AdaptiveHessian(self._hessian.finer, self._eta)

    def in_float64(self) -> "AdaptiveHessian":
        """The same in float64."""
        return AdaptiveHessian(self._hessian.in_float64(), self._eta)


def element_scale(hessian: Hessian, eta: float) -> Tensor:
    r"""\|w\| + eta as a flat vector."""
    if not eta >= 0:
        raise ValueError(f"`eta` must be >= 0, got {eta!r}.")
    return hessian.weights().abs_().add_(eta)
