"""SAM and its published variants, each a line of composition."""

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
from lightning_same.rules.settings import check_number
from lightning_same.rules.timing import Every, LargeGradient, Timing


class SAM(Rule):
    r"""Sharpness-Aware Minimization: e = rho * g / \|\|g\|\|, d = s. Two passes.

    Args:
        rho: radius; 0.05 for ImageNet and CIFAR-10, 0.1 to 0.2 for CIFAR-100 and noisy labels.
        perturbation: where pass two looks; SAM's by default.
        timing: which steps perturb; all by default.

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021.
    """

    def __init__(
        self, rho: float | Schedule = 0.05, *, perturbation: Perturbation | None = None, timing: Timing | None = None
    ) -> None:
        super().__init__(rho, perturbation, timing=timing)


class ASAM(Rule):
    r"""Adaptive SAM: e = rho * T^2 g / \|\|T g\|\| with T = \|w\| + eta, d = s. Two passes.

    Args:
        rho: radius relative to the weights; about ten times SAM's.
        eta: keeps weights near 0 movable.
        timing: which steps perturb; all by default.

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
        ICML 2021.
    """

    def __init__(self, rho: float | Schedule = 0.5, eta: float = 0.01, *, timing: Timing | None = None) -> None:
        self.eta = eta
        super().__init__(rho, Adaptive(eta), timing=timing)


class USAM(Rule):
    """Unnormalised SAM: e = rho * g, d = s. Two passes.

    Args:
        rho: step length of the ascent, in units of the learning rate.
        timing: which steps perturb; all by default.

    References:
        Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization, ICML 2022.
    """

    def __init__(self, rho: float | Schedule = 0.05, *, timing: Timing | None = None) -> None:
        super().__init__(rho, Unnormalized(), timing=timing)


class FriendlySAM(Rule):
    r"""Friendly SAM: e = rho * u / \|\|u\|\| with u = g - sigma * m and m the average of g so far, d = s. Two passes.

    Args:
        rho: radius of the perturbation.
        sigma: how much of the average is taken away; 0 is SAM.
        keep: weight of the past in the average.
        timing: which steps perturb; all by default.

    References:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024.
    """

    def __init__(
        self, rho: float | Schedule = 0.05, sigma: float = 1.0, keep: float = 0.9, *, timing: Timing | None = None
    ) -> None:
        self.sigma, self.keep = sigma, keep
        super().__init__(rho, Friendly(sigma, keep), timing=timing)


class VaSSO(Rule):
    r"""Variance-suppressed SAM: e = rho * m / \|\|m\|\| with m = (1 - theta) * m + theta * g, d = s. Two passes.

    Args:
        rho: radius of the perturbation.
        theta: weight of this step's gradient; 1 is SAM.
        timing: which steps perturb; all by default.

    References:
        Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023.
    """

    def __init__(self, rho: float | Schedule = 0.05, theta: float = 0.2, *, timing: Timing | None = None) -> None:
        self.theta = theta
        super().__init__(rho, VarianceSuppressed(theta), timing=timing)


class GSAM(Rule):
    r"""Surrogate-gap SAM: d = s - alpha * u, where u is the part of g that is orthogonal to s. Two passes.

    Args:
        rho: radius of the perturbation. In the paper it follows the learning rate: ``FollowLR(peak, floor)``.
        alpha: how much of u is climbed; 0 is SAM.
        perturbation: where pass two looks; SAM's by default.
        timing: which steps perturb; all by default.

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        alpha: float = 0.4,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.alpha = alpha
        super().__init__(rho, perturbation, SurrogateGap(alpha), timing)


class WSAM(Rule):
    """Weighted SAM, the coupled form: d = (1 - c) g + c s with c = gamma / (1 - gamma). Two passes.

    Args:
        rho: radius of the perturbation.
        gamma: weight of the sharpness, from 0 (plain) to below 1; 0.5 is SAM.
        perturbation: where pass two looks; SAM's by default.
        timing: which steps perturb; all by default.

    References:
        Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term, KDD 2023.
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
    r"""Loss + lambda * \|\|g\|\|, by finite difference: d = (1 - alpha) g + alpha s, alpha = lambda / rho. Two passes.

    Args:
        rho: length of the finite difference.
        alpha: strength of the penalty over ``rho``; 0 is plain training, 1 is SAM.
        perturbation: where pass two looks; SAM's by default.
        timing: which steps perturb; all by default.

    References:
        Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning, ICML 2022.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        alpha: float = 0.8,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.alpha = alpha
        super().__init__(rho, perturbation, Mix(alpha), timing)


class LookSAM(Rule):
    r"""SAM every k steps; between them d = g + alpha * \|\|g\|\| * u / \|\|u\|\|, with the last u. 1 + 1/k passes.

    u is the part of s that is orthogonal to g.

    Args:
        rho: radius of the perturbation.
        k: the period in optimizer steps; 1 is SAM.
        alpha: how much of u the steps between add.
        perturbation: where pass two looks; SAM's by default.

    References:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        k: int = 5,
        alpha: float = 0.7,
        *,
        perturbation: Perturbation | None = None,
    ) -> None:
        self.k, self.alpha = k, alpha
        super().__init__(rho, perturbation, LookSAMReuse(alpha), Every(k))


class AESAM(Rule):
    """SAM on the steps whose gradient is large for its time, plain steps else: 1 to 2 passes, one host sync a step.

    Args:
        rho: radius of the perturbation.
        start: threshold at the beginning of training, in standard deviations from the mean of the squared norm.
        end: threshold at its end.
        perturbation: where pass two looks; SAM's by default.

    References:
        Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023.
    """

    def __init__(
        self,
        rho: float | Schedule = 0.05,
        start: float = -1.0,
        end: float = 1.0,
        *,
        perturbation: Perturbation | None = None,
    ) -> None:
        self.start, self.end = start, end
        super().__init__(rho, perturbation, timing=LargeGradient(start, end))


class MomentumSAM(Rule):
    r"""The gradient at w - rho * v / \|\|v\|\|, v being the optimizer's momentum: d = s. One pass.

    The weights are at w + e during each forward and backward only; validation, checkpoint files and the optimizer see
    w. Needs an optimizer that keeps ``momentum_buffer`` or ``exp_avg``, such as SGD with momentum or Adam; before its
    first step e is 0.

    Args:
        rho: radius; 0.3 for SGD in the authors' code, where other rules take 0.05.

    References:
        Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, 2024.
    """

    ahead = True

    def __init__(self, rho: float | Schedule = 0.3) -> None:
        super().__init__(rho, MomentumAscent())
