"""All named rules; those of the wider family with the formulas that they must equal, and the network for it."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import (
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
    Rule,
    SAMDirection,
    SAMMagnitude,
    VaSSO,
)
from lightning_same.rules.combinations import Chain, Gains, SurrogateGap
from lightning_same.rules.perturbations import Friendly as FriendlyDirection
from lightning_same.rules.perturbations import VarianceSuppressed
from lightning_same.rules.schedules import Cosine, Linear
from lightning_same.rules.timing import LastFraction as TailTiming
from support.formulas import (
    AeSam,
    CosineRho,
    Friendly,
    Gsam,
    LastFraction,
    LinearRho,
    Look,
    Method,
    Msam,
    Penalty,
    Sam,
    SanerOnFriendly,
    SanerOnGsam,
    SanerOnVasso,
    Usam,
    Vasso,
    Wsam,
    problem,
)

CASES: dict[str, tuple[Rule, type[Method]]] = {
    "SAM": (SAM(0.3), Sam),
    "USAM": (USAM(0.3), Usam),
    "FriendlySAM": (FriendlySAM(0.3, sigma=0.8, keep=0.7), Friendly),
    "VaSSO": (VaSSO(0.3, theta=0.4), Vasso),
    "GSAM": (GSAM(0.3, alpha=0.4), Gsam),
    "WSAM": (WSAM(0.3, gamma=0.8), Wsam),
    "GradientNormPenalty": (GradientNormPenalty(0.3, alpha=0.7), Penalty),
    "LookSAM": (LookSAM(0.3, k=4, alpha=0.7), Look),
    "AESAM": (AESAM(0.3), AeSam),
    "MomentumSAM": (MomentumSAM(0.3), Msam),
    "tail": (SAM(0.3, timing=TailTiming(0.3)), LastFraction),
    "cosine rho": (SAM(Cosine(0.3, 0.1)), CosineRho),
    "linear rho": (SAM(Linear(0.3, 0.1)), LinearRho),
    "SANER on GSAM": (Rule(0.3, combination=Chain([SurrogateGap(0.4), Gains(ckpt2=0.5)])), SanerOnGsam),
    "SANER on FriendlySAM": (SANER(0.5, rho=0.3, perturbation=FriendlyDirection(0.8, 0.7)), SanerOnFriendly),
    "SANER on VaSSO": (SANER(0.5, rho=0.3, perturbation=VarianceSuppressed(0.4)), SanerOnVasso),
}


class Net(pl.LightningModule):
    """The network of the formulas, one batch a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        self.passes = 0
        for param, value in zip(self.parameters(), problem()[0], strict=True):
            param.data = torch.from_numpy(value.copy())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        counter.append(1)
        return nn.functional.mse_loss(self.layers(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([tuple(map(torch.from_numpy, batch)) for batch in problem()[1]], batch_size=None)


counter: list[int] = []


RULES: dict[str, Rule] = {
    **{name: rule for name, (rule, _) in CASES.items()},
    "ASAM": ASAM(0.5),
    "SAME": SAME((1, 4), 2.0, 0.3),
    "CustomSAME": CustomSAME(2.0, 0.3),
    "SANER": SANER(0.5, 3, 0.3),
    "CheckpointGains": CheckpointGains(1.5, 0.5, 0.2, 2.0, 0.3),
    "CheckpointSelect": CheckpointSelect((1, 4), 0.3),
    "SAMDirection": SAMDirection(0.3),
    "SAMMagnitude": SAMMagnitude(0.3),
}
