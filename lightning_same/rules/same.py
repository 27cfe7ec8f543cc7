"""The rules that treat the four checkpoints, or signs and magnitudes, of SAM's gradient differently.

g is the gradient at w, s the gradient at w + e with e = rho * g / ||g||, d the gradient that the optimizer steps with.
The checkpoints split the elements by r = s/g: 1 is r > 1, 2 is 0 < r < 1, 3 is r < -1, 4 is -1 < r < 0; elements with
g = 0, s = 0 or |s| = |g| are the rest.
"""

from collections.abc import Sequence
from numbers import Integral

from lightning_same.rules.base import Rule
from lightning_same.rules.combinations import (
    Direction,
    Gains,
    Magnitude,
    Select,
    check_ckpts,
)
from lightning_same.rules.perturbations import (
    Perturbation,
)
from lightning_same.rules.schedules import Ramp, Schedule
from lightning_same.rules.settings import LARGEST, check_int, check_number
from lightning_same.rules.timing import Timing


class SAME(Rule):
    """SAM that amplifies one checkpoint: d = condition * s there, s elsewhere. Two passes.

    The checkpoints split the elements by r = s/g: 1 is r > 1, 2 is 0 < r < 1, 3 is r < -1, 4 is -1 < r < 0. The
    original step s + s * mask is condition 2; condition 1 is SAM.

    Use it to find out what one checkpoint does. Compare it with `SAM` at several radii, since a checkpoint can act like
    a larger or smaller radius, and with `RandomGains`.

    Args:
        ckpt: the checkpoint to amplify, 1 to 4, or several of them, such as (1, 3).
        condition: the factor on it.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> SAME(ckpt=1, condition=3.0).combine([g], [s])
        [tensor([ 6.0000,  0.5000, -2.0000, -0.5000,  1.0000])]
    """

    def __init__(
        self,
        ckpt: int | Sequence[int] = 1,
        condition: float = 2.0,
        rho: float | Schedule = 0.05,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        chosen = check_ckpts(self, "ckpt", ckpt)
        self.ckpt = chosen[0] if isinstance(ckpt, Integral) else chosen
        self.condition = check_number(self, "condition", condition)
        gains = Gains(**{f"ckpt{k}": self.condition for k in chosen})
        super().__init__(rho, perturbation, gains, timing)


class CustomSAME(Rule):
    """Increases checkpoint 1, keeps 2, reduces 3, increases 4: d = c s, s, s/c, c s on them. Two passes.

    Use it to try all four checkpoints at once. Compare it with `SAM` at several radii.

    Args:
        condition: c > 0; 1 is SAM.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> CustomSAME(condition=2.0).combine([g], [s])
        [tensor([ 4.0000,  0.5000, -1.0000, -1.0000,  1.0000])]
    """

    def __init__(
        self,
        condition: float = 2.0,
        rho: float | Schedule = 0.05,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        c = check_number(self, "condition", condition, above=0)
        # Then 1/c is a gain that float32 holds.
        self.condition = c if c > 1 else check_number(self, "condition", condition, at_least=1 / LARGEST)
        super().__init__(rho, perturbation, Gains(c, 1.0, 1 / c, c), timing)


class SANER(Rule):
    """SAM that damps checkpoint 2, where noisy labels are fitted: d = (1 - alpha) s there, s elsewhere. Two passes.

    Use it against wrong labels. Choose ``rho`` first: a larger radius works in the same way.

    Args:
        alpha: how much of checkpoint 2 is taken away, as in the paper (the published code's alpha is 1 minus it);
            0 is SAM.
        warmup_epochs: alpha grows from 0 linearly over so many epochs (paper: 50); 0 means the full alpha at once.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> SANER(alpha=0.5).combine([g], [s])
        [tensor([ 2.0000,  0.2500, -2.0000, -0.5000,  1.0000])]

    References:
        Luong et al., Understanding SAM's Robustness to Noisy Labels through Gradient Down-weighting, AISTATS 2026,
        arXiv:2411.17132.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        warmup_epochs: int = 0,
        rho: float | Schedule = 0.05,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.alpha = check_number(self, "alpha", alpha)
        self.warmup_epochs = check_int(self, "warmup_epochs", warmup_epochs, at_least=0)
        super().__init__(rho, perturbation, Gains(ckpt2=Ramp(1.0, 1 - self.alpha, self.warmup_epochs)), timing)


class CheckpointGains(Rule):
    """A free gain on each checkpoint: d = ckpt1 s, ckpt2 s, ckpt3 s, ckpt4 s on them, s on the rest. Two passes.

    `SAM`, `SAME`, `CustomSAME` and `SANER` are special cases.

    Use it for gains that no other rule has.

    Args:
        ckpt1: gain where r > 1, with r = s/g. A number or a schedule.
        ckpt2: gain where 0 < r < 1.
        ckpt3: gain where r < -1.
        ckpt4: gain where -1 < r < 0.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> CheckpointGains(10, 20, 30, 40).combine([g], [s])
        [tensor([ 20.,  10., -60., -20.,   1.])]
    """

    def __init__(
        self,
        ckpt1: float | Schedule = 1.0,
        ckpt2: float | Schedule = 1.0,
        ckpt3: float | Schedule = 1.0,
        ckpt4: float | Schedule = 1.0,
        rho: float | Schedule = 0.05,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        gains = Gains(ckpt1, ckpt2, ckpt3, ckpt4)
        self.ckpt1, self.ckpt2, self.ckpt3, self.ckpt4 = gains.ckpt1, gains.ckpt2, gains.ckpt3, gains.ckpt4
        super().__init__(rho, perturbation, gains, timing)


class CheckpointSelect(Rule):
    """SAM's gradient on the chosen checkpoints only: d = s there, g elsewhere. Two passes.

    Use it to find out which checkpoints carry SAM's effect.

    Args:
        ckpts: any of 1 to 4, such as (1, 4). All four differ from SAM only where s = 0, which is in no checkpoint.
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> g, s = torch.ones(5), torch.tensor([2.0, 0.5, -2.0, -0.5, 1.0])
        >>> CheckpointSelect((1, 4)).combine([g], [s])
        [tensor([ 2.0000,  1.0000,  1.0000, -0.5000,  1.0000])]
    """

    def __init__(
        self,
        ckpts: int | Sequence[int] = (1, 2, 3, 4),
        rho: float | Schedule = 0.05,
        *,
        perturbation: Perturbation | None = None,
        timing: Timing | None = None,
    ) -> None:
        select = Select(ckpts)
        self.ckpts = select.ckpts
        super().__init__(rho, perturbation, select, timing)


class SAMDirection(Rule):
    """SAM's signs with the base gradient's magnitudes: d = |g| * sign(s), elementwise. Two passes.

    Use it, beside `SAMMagnitude`, to find out whether SAM's effect lies in the signs or in the magnitudes.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> SAMDirection().combine([torch.tensor([1.0, -2.0])], [torch.tensor([-5.0, -5.0])])
        [tensor([-1., -2.])]
    """

    def __init__(
        self, rho: float | Schedule = 0.05, *, perturbation: Perturbation | None = None, timing: Timing | None = None
    ) -> None:
        super().__init__(rho, perturbation, Direction(), timing)


class SAMMagnitude(Rule):
    """SAM's magnitudes with the base gradient's signs: d = |s| * sign(g), elementwise. Two passes.

    Use it, beside `SAMDirection`, to find out whether SAM's effect lies in the signs or in the magnitudes.

    Args:
        rho: radius of the perturbation, in units of the weights. A number or a schedule.
        perturbation: how e is computed; by default as in SAM.
        timing: which steps perturb; by default all.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the perturbation or timing is of the wrong kind.

    Example:
        >>> import torch
        >>> SAMMagnitude().combine([torch.tensor([1.0, -2.0])], [torch.tensor([-5.0, -5.0])])
        [tensor([ 5., -5.])]
    """

    def __init__(
        self, rho: float | Schedule = 0.05, *, perturbation: Perturbation | None = None, timing: Timing | None = None
    ) -> None:
        super().__init__(rho, perturbation, Magnitude(), timing)
