"""Sharpness-Aware Minimization for PyTorch Lightning."""

from lightning_same.callbacks import CheckpointFractionMonitor, GradientNormMonitor
from lightning_same.checkpoints import CheckpointFractions, checkpoint_fractions
from lightning_same.curvature import GradientCurvature, TopEigenvalue, gradient_curvature, top_eigenvalue
from lightning_same.hessian import Hessian
from lightning_same.memory import Memory
from lightning_same.mixin import SAMMixin
from lightning_same.mixing import with_sam
from lightning_same.options import TwoPassOptions
from lightning_same.rule import Rule
from lightning_same.rules import (
    AESAM,
    ASAM,
    GSAM,
    SAM,
    SAME,
    SANER,
    USAM,
    WSAM,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    FriendlySAM,
    GradientNormPenalty,
    LookSAM,
    MomentumSAM,
    SAMDirection,
    SAMMagnitude,
    VaSSO,
)
from lightning_same.sharpness import SharpnessMonitor
from lightning_same.spectrum import HessianTrace, SpectralDensity, hessian_trace, spectral_density
from lightning_same.timing import Progress

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
    "CheckpointFractionMonitor",
    "CheckpointFractions",
    "CheckpointGains",
    "CheckpointSelect",
    "CustomSAME",
    "FriendlySAM",
    "GradientCurvature",
    "GradientNormMonitor",
    "GradientNormPenalty",
    "Hessian",
    "HessianTrace",
    "LookSAM",
    "Memory",
    "MomentumSAM",
    "Progress",
    "Rule",
    "SAMDirection",
    "SAMMagnitude",
    "SAMMixin",
    "SharpnessMonitor",
    "SpectralDensity",
    "TopEigenvalue",
    "TwoPassOptions",
    "VaSSO",
    "checkpoint_fractions",
    "gradient_curvature",
    "hessian_trace",
    "spectral_density",
    "top_eigenvalue",
    "with_sam",
]
