"""SAM and its published variants: each is a composition of a perturbation, a combination and a timing.

g is the gradient at w, s the gradient at w + e, d the gradient that the optimizer steps with.
"""

from lightning_same.rules.base import Rule
from lightning_same.rules.combinations import LookSAMReuse, Mix, SurrogateGap
from lightning_same.rules.perturbations import (
    Adaptive,
    Friendly,
    MomentumAscent,
    Perturbation,
    Unnormalized,
    VarianceSuppressed,
)
from lightning_same.rules.schedules import Schedule
from lightning_same.rules.settings import check_int, check_number
from lightning_same.rules.timing import Every, LargeGradient, Timing


class SAM(Rule):
    """Sharpness-Aware Minimization: e = rho * g / ||g||, d = s. Two passes.

    Use it first. It has one number to choose, and the other rules are variants of it.

    Args:
        rho: radius of the perturbation, in units of the weights; 0.05 for ImageNet and CIFAR-10, 0.1 to 0.2 for
            CIFAR-100 and noisy labels. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> w, g = torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> with SAM(rho=0.5).perturbed([w], [g]):
        ...     print(w)
        tensor([0.3000, 0.4000])

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021,
        arXiv:2010.01412.
    """

    def __init__(
        self, rho: float | Schedule = 0.05, *, perturbation: Perturbation | None = None, timing: Timing | None = None
    ) -> None:
        super().__init__(rho, perturbation, timing=timing)


class ASAM(Rule):
    """Adaptive SAM: e = rho * T^2 g / ||T g|| with T = |w| + eta, d = s. Two passes.

    Use it where layers differ much in scale, such as without normalization layers: a weight moves in proportion to its
    size, so rescaling a layer does not change the step.

    Args:
        rho: radius relative to the weights; about ten times SAM's. A number or a schedule.
        eta: added to |w|, so that weights near 0 are perturbed too; >= 0.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the timing is of the wrong kind.

    Example:
        >>> import torch
        >>> w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0])
        >>> with ASAM(rho=0.5, eta=0.0).perturbed([w], [g]):
        ...     print(w)
        tensor([ 1.3000, -1.2000])

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
        ICML 2021, arXiv:2102.11600.
    """

    def __init__(self, rho: float | Schedule = 0.5, eta: float = 0.01, *, timing: Timing | None = None) -> None:
        self.eta = check_number(self, "eta", eta, at_least=0)
        super().__init__(rho, Adaptive(eta), timing=timing)


class USAM(Rule):
    """Unnormalized SAM: e = rho * g, d = s. Two passes.

    Use it to compare with theory, which is simpler without the norm. Choose the radius anew whenever the size of the
    gradients changes.

    Args:
        rho: length of the ascent step, in units of the learning rate. A number or a schedule.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the timing is of the wrong kind.

    Example:
        >>> import torch
        >>> w, g = torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> with USAM(rho=0.5).perturbed([w], [g]):
        ...     print(w)
        tensor([1.5000, 2.0000])

    References:
        Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization, ICML 2022, arXiv:2206.06232.
    """

    def __init__(self, rho: float | Schedule = 0.05, *, timing: Timing | None = None) -> None:
        super().__init__(rho, Unnormalized(), timing=timing)


class FriendlySAM(Rule):
    """Friendly SAM: e = rho * u / ||u|| with u = g - sigma * m and m the moving average of g so far, d = s. Two passes.

    The first step takes u = g; after each step m = keep * m + (1 - keep) * g. Keeps one copy of the parameters.

    Use it where batches are small: e then follows what is new in this batch, not what all batches share.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        sigma: how much of the average is subtracted; 0 is SAM.
        keep: weight of the past in the average, from 0 to 1.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the timing is of the wrong kind.

    References:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350.
    """

    def __init__(
        self, rho: float | Schedule = 0.05, sigma: float = 1.0, keep: float = 0.9, *, timing: Timing | None = None
    ) -> None:
        self.sigma = check_number(self, "sigma", sigma)
        self.keep = check_number(self, "keep", keep, at_least=0, at_most=1)
        super().__init__(rho, Friendly(sigma, keep), timing=timing)


class VaSSO(Rule):
    """Variance-suppressed SAM: e = rho * m / ||m|| with m = (1 - theta) * m + theta * g, d = s. Two passes.

    m begins with the first g. Keeps one copy of the parameters.

    Use it where batches are small: e then follows an average over steps, which varies less than one batch's gradient.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        theta: weight of this step's gradient, above 0 and at most 1; 1 is SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the timing is of the wrong kind.

    References:
        Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023,
        arXiv:2309.15639.
    """

    def __init__(self, rho: float | Schedule = 0.05, theta: float = 0.2, *, timing: Timing | None = None) -> None:
        self.theta = check_number(self, "theta", theta, above=0, at_most=1)
        super().__init__(rho, VarianceSuppressed(theta), timing=timing)


class GSAM(Rule):
    """Surrogate-gap SAM: d = s - alpha * u with u = g - (g . s / ||s||^2) s, orthogonal to s. Two passes.

    Use it where the radius that generalizes best keeps the training loss high. It also lowers the loss at w.

    Args:
        rho: radius of the perturbation, in units of the weights. In the paper it follows the learning rate:
            ``FollowLR(peak, floor)``.
        alpha: how much of u is subtracted; 0 is SAM.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> GSAM(alpha=0.5).combine([torch.tensor([1.0, 4.0])], [torch.tensor([2.0, 0.0])])
        [tensor([ 2., -2.])]

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, arXiv:2203.08065.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        alpha: float = 0.4,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.alpha = check_number(self, "alpha", alpha)
        super().__init__(rho, perturbation, SurrogateGap(alpha), timing)


class WSAM(Rule):
    """Weighted SAM, the coupled form: d = (1 - c) g + c s with c = gamma / (1 - gamma). Two passes.

    Use it to count sharpness more than SAM does (``gamma`` above 0.5) or less.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        gamma: weight of the sharpness, from 0 (plain training) to below 1; 0.5 is SAM.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> WSAM(gamma=0.75).combine([torch.tensor([1.0])], [torch.tensor([2.0])])
        [tensor([4.])]

    References:
        Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term, KDD 2023,
        arXiv:2305.15817.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        gamma: float = 0.9,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.gamma = gamma = check_number(self, "gamma", gamma, at_least=0, below=1)
        super().__init__(rho, perturbation, Mix(gamma / (1 - gamma)), timing)


class GradientNormPenalty(Rule):
    """Loss + lambda * ||g|| by finite difference: d = (1 - alpha) g + alpha s, alpha = lambda / rho. Two passes.

    Use it to choose the strength of the penalty apart from the radius.

    Args:
        rho: length of the finite difference, in units of the weights. A number or a schedule.
        alpha: strength lambda of the penalty over ``rho``; 0 is plain training, 1 is SAM.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> GradientNormPenalty(alpha=0.5).combine([torch.tensor([1.0])], [torch.tensor([2.0])])
        [tensor([1.5000])]

    References:
        Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning, ICML 2022,
        arXiv:2202.03599.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        alpha: float = 0.8,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.alpha = check_number(self, "alpha", alpha)
        super().__init__(rho, perturbation, Mix(alpha), timing)


class LookSAM(Rule):
    """SAM every k steps; between them d = g + alpha * ||g|| * u / ||u|| with the last u. 1 + 1/k passes.

    u = s - (g . s / ||g||^2) g is the part of s that is orthogonal to g. Keeps one copy of the parameters.

    Use it where two passes at every step take too long.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        k: the period in optimizer steps; 1 is SAM.
        alpha: how much of u the steps between add.
        perturbation: how e is computed; by default as in SAM.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation is of the wrong kind.

    References:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022, arXiv:2203.02714.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        k: int = 5,
        alpha: float = 0.7,
        *,
        perturbation: Perturbation | None = None,
    ) -> None:
        self.k = check_int(self, "k", k, at_least=1)
        self.alpha = check_number(self, "alpha", alpha)
        super().__init__(rho, perturbation, LookSAMReuse(alpha), Every(k))


class AESAM(Rule):
    """SAM on the steps whose gradient is large for its time, plain steps else: 1 to 2 passes, one host sync a step.

    With q = ||g||^2, its moving mean m and variance v, a step perturbs where q >= m + c sqrt(v). c goes from ``start``
    to ``end`` in a straight line over training, whose length must be known.

    Use it where two passes at every step take too long, and waiting for the device once per step does not matter.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        start: c at the beginning of training, in standard deviations.
        end: c at its end.
        perturbation: how e is computed; by default as in SAM.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation is of the wrong kind.

    References:
        Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023, arXiv:2304.14647.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        start: float = -1.0,
        end: float = 1.0,
        *,
        perturbation: Perturbation | None = None,
    ) -> None:
        self.start = check_number(self, "start", start)
        self.end = check_number(self, "end", end)
        super().__init__(rho, perturbation, timing=LargeGradient(start, end))


class MomentumSAM(Rule):
    """Momentum-SAM: e = -rho * v / ||v|| with v the optimizer's momentum, d = s. One pass, at w + e.

    The weights are at w + e during each forward and backward only; validation, checkpoint files and the optimizer see
    w. Needs an optimizer that keeps ``momentum_buffer`` or ``exp_avg``, such as SGD with momentum or Adam; before its
    first step e is 0.

    Use it where a step may take one pass only.

    Args:
        rho: radius of the perturbation, in units of the weights; 0.3 for SGD in the authors' code, where other rules
            take 0.05. A number or a schedule.

    Raises:
        ValueError: if ``rho`` is out of range.

    Example:
        >>> import torch
        >>> w, v = torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> with MomentumSAM(rho=0.5).perturbed([w], [v]):
        ...     print(w)
        tensor([-0.3000, -0.4000])

    References:
        Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, 2024,
        arXiv:2401.12033.
    """

    ahead = True

    def __init__(self, rho: float | Schedule = 0.3) -> None:
        super().__init__(rho, MomentumAscent())
