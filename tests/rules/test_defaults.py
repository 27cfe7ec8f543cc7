"""What a rule is if nothing is said: the values of the papers, as the documentation names them."""

import pytest
import torch

from lightning_same import (
    AESAM,
    ASAM,
    GSAM,
    SAM,
    SAME,
    SANER,
    USAM,
    WSAM,
    CheckpointDose,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    FriendlySAM,
    GradientNormPenalty,
    LookSAM,
    MomentumSAM,
    RandomGains,
    Rule,
    SAMDirection,
    SAMMagnitude,
    VaSSO,
)
from lightning_same.rules.controls import Dose, RandomMask
from lightning_same.rules.perturbations import StochasticRounding
from lightning_same.rules.schedules import Linear
from lightning_same.rules.settings import check_number
from lightning_same.rules.timing import LargeGradient, LastFraction

SHOWN = {
    SAM: "SAM(rho=0.05)",
    ASAM: "ASAM(rho=0.5, eta=0.01)",
    USAM: "USAM(rho=0.05)",
    FriendlySAM: "FriendlySAM(rho=0.05, sigma=1.0, keep=0.9)",
    VaSSO: "VaSSO(rho=0.05, theta=0.2)",
    GSAM: "GSAM(rho=0.05, alpha=0.4)",
    WSAM: "WSAM(rho=0.05, gamma=0.9)",
    GradientNormPenalty: "GradientNormPenalty(rho=0.05, alpha=0.8)",
    LookSAM: "LookSAM(rho=0.05, k=5, alpha=0.7)",
    AESAM: "AESAM(rho=0.05, start=-1.0, end=1.0)",
    MomentumSAM: "MomentumSAM(rho=0.3)",
    SAME: "SAME(ckpt=1, condition=2.0, rho=0.05)",
    CustomSAME: "CustomSAME(condition=2.0, rho=0.05)",
    SANER: "SANER(alpha=0.5, warmup_epochs=0, rho=0.05)",
    CheckpointGains: "CheckpointGains(ckpt1=1.0, ckpt2=1.0, ckpt3=1.0, ckpt4=1.0, rho=0.05)",
    CheckpointSelect: "CheckpointSelect(ckpts=(1, 2, 3, 4), rho=0.05)",
    SAMDirection: "SAMDirection(rho=0.05)",
    SAMMagnitude: "SAMMagnitude(rho=0.05)",
    CheckpointDose: "CheckpointDose(ckpt=1, dose=0.5, rho=0.05)",
    RandomGains: "RandomGains(ckpt=1, condition=2.0, rho=0.05, match='count', seed=0)",
}


@pytest.mark.parametrize("kind", SHOWN, ids=lambda kind: kind.__name__)
def test_the_defaults_of_rules(kind: type[Rule]) -> None:
    assert repr(kind()) == SHOWN[kind]


def test_the_defaults_of_parts() -> None:
    found = [Dose(2), RandomMask(2), LargeGradient(), LastFraction(), StochasticRounding(), Linear(0.2)]
    assert list(map(repr, found)) == [
        "Dose(ckpt=2, dose=0.5)",
        "RandomMask(ckpt=2, gain=2.0, match='count', seed=0)",
        "LargeGradient(start=-1.0, end=1.0, keep=0.9)",
        "LastFraction(share=0.3)",
        "StochasticRounding(seed=0)",
        "Linear(start=0.2, end=0.0)",
    ]


@pytest.mark.parametrize("make", [lambda: ASAM(eta=-0.5), lambda: StochasticRounding(seed=-1)])
def test_nothing_below_0_is_taken(make: object) -> None:
    with pytest.raises(ValueError, match="must be a"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 1.0])
def test_no_weight_of_gsam_is_special_but_0(alpha: float) -> None:
    g, s = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([3.0, -1.0], dtype=torch.float64)
    (d,) = GSAM(alpha=alpha).combine([g], [s])
    torch.testing.assert_close(d, s - alpha * (g - (g @ s) / (s @ s) * s), rtol=0, atol=1e-14)
    inf = torch.tensor([float("inf"), 0.0], dtype=torch.float64)
    assert torch.equal(GSAM(alpha=0).combine([inf], [s])[0], s)


def test_a_long_integer_is_shown_while_python_prints_it() -> None:
    for number, shown in ((2**1023, str(2**1023)), (2**1024, "an integer of 1025 bits")):
        with pytest.raises(ValueError, match=f"got {shown}\\.$"):
            check_number(SAM(), "rho", number)
