"""The public names, and where they are: `__init__.py` loads each when it is first used."""

from .callbacks.checkpoint_effects import CheckpointEffectMonitor
from .callbacks.checkpoint_fractions import CheckpointFractionMonitor
from .callbacks.gradient_norms import GradientNormMonitor
from .callbacks.replay_check import ReplayCheck
from .callbacks.sharpness import SharpnessMonitor
from .curvature.adaptive import AdaptiveHessian
from .curvature.eigenvalues import TopEigenvalue, top_eigenvalue
from .curvature.gradient import GradientCurvature, gradient_curvature
from .curvature.hessian import Hessian
from .curvature.neighborhood import (
    AverageCaseSharpness,
    WorstCaseSharpness,
    average_case_sharpness,
    worst_case_sharpness,
)
from .curvature.spectrum import HessianTrace, SpectralDensity, hessian_trace, spectral_density
from .gradients.checkpoints import CheckpointFractions, checkpoint_fractions
from .replay.replaying import replaying
from .rules.base import Rule
from .rules.combinations import (
    Chain,
    Combination,
    Direction,
    Elementwise,
    Gains,
    LookSAMReuse,
    Magnitude,
    Mix,
    Perturbed,
    Select,
    SurrogateGap,
)
from .rules.controls import CheckpointDose, Dose, RandomGains, RandomMask
from .rules.perturbations import (
    Adaptive,
    Friendly,
    MomentumAscent,
    Normalized,
    Perturbation,
    StochasticRounding,
    Unnormalized,
    VarianceSuppressed,
)
from .rules.progress import Progress
from .rules.sam import (
    AESAM,
    ASAM,
    GSAM,
    SAM,
    USAM,
    WSAM,
    FriendlySAM,
    GradientNormPenalty,
    LookSAM,
    MomentumSAM,
    VaSSO,
)
from .rules.same import (
    SAME,
    SANER,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    SAMDirection,
    SAMMagnitude,
)
from .rules.schedules import Cosine, FollowLR, Linear, Ramp, Schedule
from .rules.state import Memory
from .rules.timing import Every, EveryStep, LargeGradient, LastFraction, RandomSteps, Timing
from .two_pass.mixin import SAMMixin
from .two_pass.options import TwoPassOptions
from .two_pass.with_sam import with_sam

__version__: str

__all__ = [
    "AESAM",
    "ASAM",
    "GSAM",
    "SAM",
    "SAME",
    "SANER",
    "USAM",
    "WSAM",
    "Adaptive",
    "AdaptiveHessian",
    "AverageCaseSharpness",
    "Chain",
    "CheckpointDose",
    "CheckpointEffectMonitor",
    "CheckpointFractionMonitor",
    "CheckpointFractions",
    "CheckpointGains",
    "CheckpointSelect",
    "Combination",
    "Cosine",
    "CustomSAME",
    "Direction",
    "Dose",
    "Elementwise",
    "Every",
    "EveryStep",
    "FollowLR",
    "Friendly",
    "FriendlySAM",
    "Gains",
    "GradientCurvature",
    "GradientNormMonitor",
    "GradientNormPenalty",
    "Hessian",
    "HessianTrace",
    "LargeGradient",
    "LastFraction",
    "Linear",
    "LookSAM",
    "LookSAMReuse",
    "Magnitude",
    "Memory",
    "Mix",
    "MomentumAscent",
    "MomentumSAM",
    "Normalized",
    "Perturbation",
    "Perturbed",
    "Progress",
    "Ramp",
    "RandomGains",
    "RandomMask",
    "RandomSteps",
    "ReplayCheck",
    "Rule",
    "SAMDirection",
    "SAMMagnitude",
    "SAMMixin",
    "Schedule",
    "Select",
    "SharpnessMonitor",
    "SpectralDensity",
    "StochasticRounding",
    "SurrogateGap",
    "Timing",
    "TopEigenvalue",
    "TwoPassOptions",
    "Unnormalized",
    "VaSSO",
    "VarianceSuppressed",
    "WorstCaseSharpness",
    "average_case_sharpness",
    "checkpoint_fractions",
    "gradient_curvature",
    "hessian_trace",
    "replaying",
    "spectral_density",
    "top_eigenvalue",
    "with_sam",
    "worst_case_sharpness",
]
