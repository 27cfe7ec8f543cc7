"""FSDP2 hybrid, in bfloat16 and offloaded; every rule that carries something is saved and resumed, in little memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.counting import most_bytes
from support.fits import differences, trainer
from support.fsdp2 import Kind, train, train_and_resume, train_each
from support.named_rules import RULES
from support.nets import build
from support.ranks import Ranks
from support.sharded import Sharded, needs_fsdp2, strategy
from torch import nn

from lightning_same import SAM, SAME, Memory, Rule, with_sam

pytestmark = needs_fsdp2

STATEFUL = {name: rule for name, rule in RULES.items() if rule.stateful}
SOME = {name: RULES[name] for name in ("SAM", "ASAM", "SAME", "GSAM", "MomentumSAM", *STATEFUL)}


@pytest.mark.parametrize(("way", "size"), [("hybrid", 4), ("offloaded", 2)])
def test_processes_are_one(ranks: dict[int, Ranks], way: str, size: int) -> None:
    expected = train_each(SOME, "plain")
    for found in ranks[size].run(train_each, SOME, way):
        for name in SOME:
            for ours, one in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(ours, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", [SAM(2.0), SAME((1, 4), 2.0, 2.0)], ids=repr)
def test_parameters_in_bfloat16(ranks: dict[int, Ranks], rule: Any) -> None:
    """The policy's casts by hand on one process; pass two sees w + e, and a validation loop changes nothing."""
    _, losses = train(rule, "bfloat16")
    with_validation, without = (ranks[2].run(train, rule, "bfloat16", "cpu", each) for each in (True, False))
    assert differences(with_validation[0][0], without[0][0]) == []
    for _, seen in with_validation:
        assert len(seen) == len(losses) == 16
        assert all(first != second for first, second in zip(seen[::2], seen[1::2], strict=True))
    both = [sum(pair) / 2 for pair in zip(*(seen for _, seen in with_validation), strict=True)]
    # Later on, rounding of the halves of a batch by themselves tells.
    assert both[:6] == pytest.approx(losses[:6], rel=0.05)


@pytest.mark.parametrize("way", ["plain", "hybrid"])
def test_every_rule_that_carries_something_goes_on_from_a_file(
    ranks: dict[int, Ranks], way: str, tmp_path: Path
) -> None:
    assert len(STATEFUL) >= 4
    for found in ranks[4].run(train_and_resume, STATEFUL, way, str(tmp_path)):
        for name, (straight, resumed) in found.items():
            assert differences(straight, resumed) == [], name


def names_kept_after_a_fit(rule: Rule) -> list[str]:
    """The parameters of which a file written after the last validation has something that the rule carries."""
    module = with_sam(build(Kind, "plain"), rule)
    made = trainer(max_epochs=1, val_check_interval=2, **strategy())
    made.fit(module)
    checkpoint: dict[str, Any] = {}
    for callback in made.callbacks:
        callback.on_save_checkpoint(made, module, checkpoint)
    (memory,) = checkpoint["lightning_same"]["memories"]
    return sorted({name for kept in memory["tensors"].values() for name in kept})


def test_nothing_that_a_rule_carries_is_lost_after_a_validation_that_leaves_parameters_gathered(
    ranks: dict[int, Ranks],
) -> None:
    rule = RULES["VaSSO"]
    expected = names_kept_after_a_fit(rule)
    assert len(expected) >= 4
    assert ranks[2].run(names_kept_after_a_fit, rule)[0] == expected


class Wide(Sharded):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 256), *(nn.Linear(256, 256) for _ in range(11)))


def save() -> tuple[list[int], int, int]:
    """The most that gathering a rule's memory allocates here, twenty times, the bytes of the largest tensor and of all.

    On a busy machine a thread of gloo may hold what it has sent for a while longer, also until the next time.
    """
    from lightning.pytorch import LightningModule

    found = []

    class Saved(Wide):
        def on_fit_start(self) -> None:
            memory = Memory(list(self.parameters()))
            memory.set("average", [param.detach() for param in self.parameters()])
            names = {param: name for name, param in self.named_parameters()}
            memory.state_dict(names)  # What is made once for a group of processes is there now.
            for _ in range(20):
                with most_bytes() as most:
                    memory.state_dict(names)
                found.append(most())

    module: LightningModule = build(Saved)
    trainer(limit_train_batches=0, limit_val_batches=0, **strategy()).fit(module)
    sizes = [param.nbytes for param in build(Wide).parameters()]
    return found, max(sizes), sum(sizes)


def test_saving_gathers_one_tensor_at_a_time_and_on_one_process(ranks: dict[int, Ranks]) -> None:
    (first, largest, total), (second, *_) = ranks[2].run(save)
    assert any(total <= most <= total + 3 * largest for most in first), "the first process holds what it writes"
    assert min(second) <= 3 * largest < total / 3
