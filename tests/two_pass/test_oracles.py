"""Every rule with every feature of the Trainer at once, against numpy with analytic gradients, over twenty steps.

A rule that is compared with itself only, in two ways of training, may be wrong in both.
"""

import math
from typing import Any

import numpy as np
import pytest
from support.fits import trainer
from support.formulas import STEPS
from support.nets import float64, seed_all
from support.trajectories import CASES, CLIP, EPOCHS, MICRO_BATCHES, Net, ScaledInFloat64, by_hand, one_cycle, seen

from lightning_same import with_sam

STATEFUL = ["FriendlySAM", "VaSSO", "LookSAM", "AESAM", "SANER on VaSSO"]


def fitted(name: str, optimizer: str, scaled: bool, bad: Any = None, **options: Any) -> Any:
    """The module after the fit, and its Trainer."""
    seen.clear()
    seed_all(1)
    with float64():
        module = with_sam(Net(optimizer, bad), CASES[name][0], check_replay=False, **options)
        made = trainer(
            max_epochs=EPOCHS,
            accumulate_grad_batches=MICRO_BATCHES,
            gradient_clip_val=CLIP,
            plugins=[ScaledInFloat64()] if scaled else None,
        )
        made.fit(module)
    assert made.global_step == STEPS
    return module, made


def check(module: Any, expected: Any) -> None:
    for param, value in zip(module.parameters(), expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_with_scaler_clipping_accumulation_and_schedule(name: str, optimizer: str) -> None:
    expected, calls = by_hand(CASES[name][1](), optimizer)
    module, made = fitted(name, optimizer, scaled=True)
    check(module, expected)
    assert len(seen) == calls
    assert made.precision_plugin.scaler.get_scale() == 2.0 ** (10 + STEPS // 3)


def test_the_clipping_clips_some_steps_and_the_schedule_moves() -> None:
    """Or the test above would not see that they are there."""
    assert 0 < one_cycle(0) < one_cycle(2) < one_cycle(5) == 1 > one_cycle(12) > one_cycle(STEPS - 1) > 0
    clipped, unclipped = (by_hand(CASES["SAM"][1](), "SGD", clip=clip)[0] for clip in (CLIP, math.inf))
    assert max(np.abs(a - b).max() for a, b in zip(clipped, unclipped, strict=True)) > 1e-3
    # No step is clipped to less than half of this, so some are not clipped at all.
    twice = by_hand(CASES["SAM"][1](), "SGD", clip=2 * CLIP)[0]
    assert max(np.abs(a - b).max() for a, b in zip(clipped, twice, strict=True)) > 1e-3


BY_MICRO_BATCH = [
    "SAM",
    "ASAM",
    "USAM",
    "FriendlySAM",
    "VaSSO",
    "GSAM",
    "SAME 13",
    "CheckpointSelect 14",
    "SANER on FriendlySAM",
    "cosine rho",
]


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("name", BY_MICRO_BATCH)
def test_each_micro_batch_perturbed_by_itself(name: str, scaled: bool) -> None:
    expected, _ = by_hand(CASES[name][1](), "SGD", micro_batch=True)
    module, _ = fitted(name, "SGD", scaled, accumulate="micro_batch")
    check(module, expected)


@pytest.mark.parametrize("name", [*STATEFUL, "USAM", "GSAM"])
def test_steps_with_an_overflow_are_skipped_and_remembered_by_nobody(name: str) -> None:
    """As the scaler skips them: the rate goes on, the optimizer and the rule do not."""
    bad = dict.fromkeys((4, 9), (math.inf, (0, 1, 2)))
    expected, _ = by_hand(CASES[name][1](), "SGD", dropped=(4, 9))
    module, made = fitted(name, "SGD", True, bad)
    check(module, expected)
    assert made.precision_plugin.scaler.get_scale() < 2.0 ** (10 + STEPS // 3)


# VaSSO's e comes from an average that a bad g does not enter, and its d is s: a step with a bad g is as good as any.
@pytest.mark.parametrize("accumulate", ["window", "micro_batch"])
@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("VaSSO", (2,)),
        *((name, passes) for name in ("FriendlySAM", "SANER on VaSSO", "SAME 13") for passes in ((0, 1), (2,))),
    ],
)
def test_dropped_steps_leave_nothing_behind_and_are_counted(
    name: str, passes: tuple[int, ...], accumulate: str
) -> None:
    """The second of three micro-batches is not finite, in two of the steps."""
    bad = {step: (math.nan if step == 4 else math.inf, passes) for step in (4, 9)}
    by_micro_batch = accumulate == "micro_batch"
    expected, _ = by_hand(CASES[name][1](), "SGD", by_micro_batch, dropped=(4, 9))
    module, made = fitted(name, "SGD", False, bad, accumulate=accumulate, nonfinite="skip")
    check(module, expected)
    assert made.callback_metrics["sam/skipped_steps"] == 2
