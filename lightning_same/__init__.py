"""Sharpness-Aware Minimization for PyTorch Lightning."""

from lightning_same.callbacks.checkpoint_effects import CheckpointEffectMonitor
from lightning_same.callbacks.checkpoint_fractions import CheckpointFractionMonitor
from lightning_same.callbacks.gradient_norms import GradientNormMonitor
from lightning_same.callbacks.replay_check import ReplayCheck
from lightning_same.callbacks.sharpness import SharpnessMonitor
from lightning_same.curvature.adaptive import AdaptiveHessian
from lightning_same.curvature.eigenvalues import TopEigenvalue, top_eigenvalue
from lightning_same.curvature.gradient import GradientCurvature, gradient_curvature
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.neighborhood import (
    AverageCaseSharpness,
    WorstCaseSharpness,
    average_case_sharpness,
    worst_case_sharpness,
)
from lightning_same.curvature.spectrum import HessianTrace, SpectralDensity, hessian_trace, spectral_density
from lightning_same.gradients.checkpoints import CheckpointFractions, checkpoint_fractions
from lightning_same.replay.replaying import replaying
from lightning_same.rules.base import Rule
from lightning_same.rules.combinations import (
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
from lightning_same.rules.controls import CheckpointDose, Dose, RandomGains, RandomMask
from lightning_same.rules.perturbations import (
    Adaptive,
    Friendly,
    MomentumAscent,
    Normalized,
    Perturbation,
    Unnormalized,
    VarianceSuppressed,
)
from lightning_same.rules.progress import Progress
from lightning_same.rules.sam import (
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
from lightning_same.rules.same import (
    SAME,
    SANER,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    SAMDirection,
    SAMMagnitude,
)
from lightning_same.rules.schedules import Cosine, FollowLR, Linear, Ramp, Schedule
from lightning_same.rules.state import Memory
from lightning_same.rules.timing import Every, EveryStep, LargeGradient, LastFraction, RandomSteps, Timing
from lightning_same.two_pass.mixin import SAMMixin
from lightning_same.two_pass.options import TwoPassOptions
from lightning_same.two_pass.with_sam import with_sam

__version__ = "0.1.0"

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
