"""Rules are values: what they show, what they equal, and which arguments they refuse."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.checkpoint_rules import CASES

import lightning_same
from lightning_same import (
    ASAM,
    SAM,
    SAME,
    SANER,
    WSAM,
    CheckpointDose,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    FriendlySAM,
    LookSAM,
    Memory,
    RandomGains,
    Rule,
    VaSSO,
)
from lightning_same.rules.combinations import Combination, Elementwise
from lightning_same.rules.perturbations import (
    Adaptive,
    Friendly,
    Perturbation,
    StochasticRounding,
    VarianceSuppressed,
)
from lightning_same.rules.schedules import Cosine, Linear, Ramp, Schedule
from lightning_same.rules.timing import Every, LargeGradient, LastFraction, RandomSteps, Timing


def test_reprs_say_what_was_chosen() -> None:
    assert repr(SAM()) == "SAM(rho=0.05)"
    assert repr(SAME(1, rho=0.1)) == "SAME(ckpt=1, condition=2.0, rho=0.1)"
    assert repr(SAME((1, 3), timing=Every(2))) == "SAME(ckpt=(1, 3), condition=2.0, rho=0.05, timing=Every(k=2))"
    assert repr(SANER(perturbation=Adaptive())) == (
        "SANER(alpha=0.5, warmup_epochs=0, rho=0.05, perturbation=Adaptive(eta=0.01))"
    )


def test_rules_are_values() -> None:
    names = {name: getattr(lightning_same, name) for name in lightning_same.__all__}
    for rule, *_ in CASES.values():
        twin = eval(repr(rule), {**names, "Adaptive": Adaptive, "Every": Every})
        assert twin == rule
        assert hash(twin) == hash(rule)
    assert SAM(0.1) != SAM(0.2)
    assert SAME([1, 3]) == SAME((1, 3))
    assert Cosine(0.3, 0.1).arguments() == Linear(0.3, 0.1).arguments()
    assert Cosine(0.3, 0.1) != Linear(0.3, 0.1)
    assert SAM() != Rule()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(-0.1), r"SAM: `rho` must be a finite number >= 0 and <= 1\.8e\+19, got -0.1"),
        (lambda: SAM(float("nan")), r"SAM: `rho` must be a finite number >= 0 and <= 1\.8e\+19, got nan"),
        (lambda: SAM(float("inf")), r"`rho`"),
        (lambda: SAM("0.1"), r"`rho` must be a finite number >= 0 and <= 1\.8e\+19, got '0.1'"),
        (lambda: SAM(True), r"`rho`"),
        (lambda: ASAM(eta=-1), r"`eta` must be a finite number >= 0"),
        (lambda: SAME(5), r"SAME: `ckpt` must be one of 1, 2, 3, 4 .* got 5"),
        (lambda: SAME(0), r"`ckpt`"),
        (lambda: SAME(()), r"`ckpt`"),
        (lambda: SAME((1, 1)), r"each once"),
        (lambda: SAME("1"), r"`ckpt`"),
        (lambda: SAME(True), r"`ckpt`"),
        (lambda: SAME(1.0), r"`ckpt`"),
        (lambda: SAME(None), r"`ckpt` must be one of"),
        (lambda: SAME(condition=float("inf")), r"SAME: `condition` must be a finite number"),
        (lambda: CustomSAME(0), r"`condition` must be a finite number > 0, got 0"),
        (lambda: CustomSAME(-1), r"`condition`"),
        (lambda: SANER(alpha="high"), r"`alpha`"),
        (lambda: SANER(warmup_epochs=-1), r"`warmup_epochs` must be a whole number >= 0"),
        (lambda: CheckpointGains(ckpt3=None), r"`ckpt3` must be a finite number"),
        (lambda: CheckpointSelect((1, 6)), r"`ckpts` must be one of"),
        (lambda: SAM(timing=Every(0)), r"Every: `k` must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


BOUNDS: list[tuple[Callable[[float], object], list[float], list[float]]] = [
    (SAM, [0], [-1e-3]),
    (lambda x: ASAM(eta=x), [0], [-1e-3]),
    (Adaptive, [0], [-1e-3]),
    (lambda x: FriendlySAM(keep=x), [0, 1], [-1e-3, 1.001]),
    (lambda x: Friendly(keep=x), [0, 1], [-1e-3, 1.001]),
    (lambda x: VaSSO(theta=x), [1e-3, 1], [0, 1.001]),
    (VarianceSuppressed, [1e-3, 1], [0, 1.001]),
    (lambda x: StochasticRounding(seed=int(x)), [0], [-1]),
    (lambda x: WSAM(gamma=x), [0, 0.999], [-1e-3, 1]),
    (lambda x: LookSAM(k=int(x)), [1], [0]),
    (lambda x: Every(int(x)), [1], [0]),
    (RandomSteps, [0, 1], [-1e-3, 1.001]),
    (lambda x: RandomSteps(0.5, seed=int(x)), [0], [-1]),
    (LastFraction, [0, 1], [-1e-3, 1.001]),
    (lambda x: LargeGradient(keep=x), [0, 1], [-1e-3, 1.001]),
    (lambda x: Ramp(0, 1, int(x)), [0], [-1]),
    (lambda x: SANER(warmup_epochs=int(x)), [0], [-1]),
    (CustomSAME, [1e-3, 1], [0, 1e-39]),
    (lambda x: RandomGains(seed=int(x)), [0], [-1]),
    (lambda x: RandomGains(ckpt=int(x)), [1, 4], [0, 5]),
    (lambda x: CheckpointDose(ckpt=int(x)), [1, 4], [0, 5]),
]


@pytest.mark.parametrize(("make", "good", "bad"), BOUNDS)
def test_the_ends_of_a_range(make: Callable[[float], object], good: list[float], bad: list[float]) -> None:
    for number in good:
        make(number)
    for number in bad:
        with pytest.raises(ValueError, match="must be"):
            make(number)


def test_numpy_numbers_are_numbers() -> None:
    assert SAM(np.float32(0.5)) == SAM(0.5)
    assert SAME(np.int64(2)) == SAME(2)
    assert SAME(np.array([1, 3])) == SAME((1, 3))
    assert SANER(warmup_epochs=np.int64(3)) == SANER(warmup_epochs=3)


@pytest.mark.parametrize("name", ["perturbation", "timing"])
def test_parts_of_the_wrong_kind_are_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"SAM: `{name}` must be a {name.title()}, got 'every'"):
        SAM(**{name: "every"})


@pytest.mark.parametrize(
    ("part", "method"),
    [
        (Perturbation, "direction"),
        (Combination, "combine_"),
        (Elementwise, "formula"),
        (Timing, "active"),
        (Schedule, "value"),
    ],
)
def test_a_part_without_its_formula_cannot_be_made(part: type, method: str) -> None:
    with pytest.raises(TypeError, match=f"abstract .*{method}"):
        type("Incomplete", (part,), {})()


@pytest.mark.parametrize("rule", [SAME(1, 2.0), LookSAM(k=2)], ids=repr)
def test_d_has_no_history(rule: Rule) -> None:
    g, s = (torch.tensor([1.0, -2.0], requires_grad=True) * factor for factor in (1.0, 2.0))
    memory = Memory([torch.zeros(2)])
    (d,) = rule.combine([g], [s], memory=memory)
    assert not d.requires_grad
    assert not any(kept.requires_grad for kept in memory.get("looksam.orthogonal") if kept is not None)
