"""What is promised about every member of the zoo."""

import copy
import math
import pickle
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from support.fits import differences
from support.nets import float64, seed_all
from support.ranks import Ranks
from torch import Tensor

from lightning_same import (
    SAM,
    SAME,
    CheckpointFractionMonitor,
    GradientNormMonitor,
    ReplayCheck,
    Rule,
    SharpnessMonitor,
    with_sam,
)
from zoo.by_hand import by_hand
from zoo.fits import EPOCHS, Batches, built, observed, random_states, set_random_states, start

FORCED = SAME(1, condition=3.0, rho=0.0)
"""Takes its second pass, of which nothing may be left."""

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulating and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
}

MONITORS: dict[str, Any] = {
    "CheckpointFractionMonitor": lambda: CheckpointFractionMonitor(every_n_steps=1, per_layer=True),
    "GradientNormMonitor": lambda: GradientNormMonitor(every_n_steps=1),
    "SharpnessMonitor": lambda: SharpnessMonitor(every_n_steps=2, max_products=3, mode="train"),
}


STEP = "sharpness/step_alignment"


class Member:
    """A published model, trained on synthetic data from random weights.

    Attributes:
        rho: the radius of the training by hand.
        double: whether that is done in float64. Rounding to float32 grows from step to step, by BatchNorm on few
            samples and by argmax.
        tolerance: of its weights.
        resumes: whether a plain training that is resumed equals one that never stopped: not if the module keeps state
            that is not in its checkpoint files.
        load: what `load_from_checkpoint` needs; None if the module cannot be loaded so.
        copies: whether it can be pickled and copied.
        curved: whether second derivatives can be taken.
    """

    rho: ClassVar[float] = 0.1
    double: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-9
    resumes: ClassVar[bool] = True
    load: ClassVar[dict[str, Any] | None] = {}
    copies: ClassVar[bool] = True
    curved: ClassVar[bool] = True

    @staticmethod
    def make() -> pl.LightningModule:
        """The module."""
        raise NotImplementedError

    @staticmethod
    def batches() -> Batches:
        """The batches of an epoch, on one process."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _nothing_differs_in_a_replay(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*when it is replayed")
            yield

    @pytest.mark.parametrize("options", OPTIONS)
    def test_a_forced_second_pass_at_rho_zero_is_plain_training(self, options: str) -> None:
        forced = observed(mixed(built(self.make), FORCED), self.batches(), **OPTIONS[options])
        assert differences(plain(type(self), options), forced) == []

    def test_sam_is_the_loop_by_hand(self) -> None:
        with float64() if self.double else nullcontext():
            kind = torch.get_default_dtype()
            module = mixed(built(self.make).to(kind), SAM(self.rho))
            seen = observed(module, self.batches(), GradientNormMonitor(every_n_steps=1))
            expected = by_hand(built(self.make).to(kind), self.batches(), self.rho)
            without = by_hand(built(self.make).to(kind), self.batches(), 0.0)
        away = distance(module.state_dict(), expected.state_dict)
        assert away < self.tolerance
        logged = [(row["grad_norm/base"], row["grad_norm/perturbed"]) for _, row in seen["monitored"]]
        assert logged == [pytest.approx(norms, rel=1e-4) for norms in expected.norms]
        assert distance(without.state_dict, expected.state_dict) > 20 * self.tolerance

    @pytest.mark.parametrize("monitor", MONITORS)
    def test_beside_a_monitor_it_is_plain_training(self, monitor: str) -> None:
        if monitor == "SharpnessMonitor" and not self.curved:
            with pytest.raises(RuntimeError, match="Hessian: "):
                observed(built(self.make), self.batches(), MONITORS[monitor]())
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*has not converged")
            watched = observed(built(self.make), self.batches(), MONITORS[monitor]())
        # A schedule that begins at a learning rate of 0 takes a step that has no direction.
        rows = [{k: v for k, v in row.items() if (step, k) != (0, STEP)} for step, row in watched["monitored"]]
        values = [value for row in rows for value in row.values()]
        # Some values of a step are known sooner than others, and have a row of their own.
        measured = {step for step, _ in watched["monitored"]}
        assert len(measured) == watched["global_step"] // (2 if "Sharp" in monitor else 1)
        assert any(value != 0 for value in values)
        assert all(map(math.isfinite, values))
        assert differences(plain(type(self)), watched | {"monitored": []}) == []

    def test_beside_a_replay_check_it_is_plain_training(self) -> None:
        check = ReplayCheck(every_n_steps=2)
        assert differences(plain(type(self)), observed(built(self.make), self.batches(), check)) == []
        assert check.report is not None
        assert check.report.exact

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        kind = type(built(self.make))
        module = mixed(built(self.make), SAM(self.rho))
        file = tmp_path / "one.ckpt"
        seed_all(1)
        start(module, self.batches(), max_epochs=1).save_checkpoint(file)
        module.trainer = None
        others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))] if self.copies else []
        if self.load is not None:
            ruled: Any = with_sam(kind, SAM(self.rho))
            others += [kind.load_from_checkpoint(file, **self.load), ruled.load_from_checkpoint(file, **self.load)]
        for other in others:
            assert differences(dict(module.state_dict()), dict(other.state_dict())) == []
        unmixed = built(self.make)
        unmixed.load_state_dict(torch.load(file, weights_only=False)["state_dict"])
        assert differences(dict(module.state_dict()), dict(unmixed.state_dict())) == []

    @pytest.mark.parametrize("rule", [None, SAM(0.1)], ids=repr)
    def test_resumed_is_never_stopped(self, rule: Any, tmp_path: Path) -> None:
        found = differences(*stopped_and_straight(self, rule, tmp_path))
        assert (found == []) is self.resumes, found


class Distributed(Member):
    """A member that is trained on two processes too."""

    def test_on_two_processes(self, ranks: dict[int, Ranks]) -> None:
        kind = type(self)
        # Made here first, where a library that is missing skips the test. A shared parameter has one name.
        names = dict(built(self.make).named_parameters()).keys()
        expected = ranks[2].run(on_a_rank, kind, "plain")
        assert expected[0]["weights"].keys() == names
        for other in ("forced", *MONITORS):
            assert differences(expected, ranks[2].run(on_a_rank, kind, other)) == [], other
        one, two = ranks[2].run(on_a_rank, kind, "sam")
        assert differences(one["weights"], two["weights"]) == []
        assert differences(one["weights"], expected[0]["weights"]) != []


class Stateless(Distributed):
    """A member whose steps depend on weights and batch alone: two processes, or two micro-batches, are one batch."""

    def test_two_batches_are_one_step(self, ranks: dict[int, Ranks]) -> None:
        with float64():
            expected = by_hand(built(self.make), self.batches(), self.rho, window=2)
            module = mixed(built(self.make), SAM(self.rho))
            observed(module, self.batches(), accumulate_grad_batches=2)
        away = [distance(module.state_dict(), expected.state_dict)]
        away += [distance(weights, expected.state_dict) for weights in ranks[2].run(sam_in_float64, type(self))]
        assert max(away) < self.tolerance


def sam_in_float64(member: type[Member]) -> dict[str, Tensor]:
    """The weights after a fit on one of several processes."""
    with float64():
        module = mixed(built(member.make), SAM(member.rho))
        observed(module, member.batches())
    return dict(module.named_parameters())


def mixed(module: pl.LightningModule, rule: Rule | None) -> pl.LightningModule:
    """With the rule, whose first step is checked; or as it is."""
    return module if rule is None else with_sam(module, rule, check_replay=True)


@cache
def plain(member: type[Member], options: str = "plain") -> dict[str, Any]:
    """A fit of the module as it is."""
    return observed(built(member.make), member.batches(), **OPTIONS[options])


def on_a_rank(member: type[Member], what: str) -> dict[str, Any]:
    """A fit on one of several processes."""
    module = built(member.make)
    if what in ("forced", "sam"):
        mixed(module, FORCED if what == "forced" else SAM(member.rho))
    callbacks = [MONITORS[what]()] if what in MONITORS else []
    seen = observed(module, member.batches(), *callbacks)
    assert bool(seen["monitored"]) is (bool(callbacks) and torch.distributed.get_rank() == 0)
    return seen | {"monitored": []}


class EpochEnds(Callback):
    """Keeps the random numbers of the moment at which an epoch begins, or puts them back there."""

    def __init__(self, states: list[Any] | None = None) -> None:
        self.states = states
        self.resumes = states is not None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            if self.resumes:
                set_random_states(self.states or [])
            else:
                self.states = random_states()


def stopped_and_straight(member: Member, rule: Any, folder: Path) -> list[dict[str, Any]]:
    """A training that goes on from the checkpoint file of its first epoch, and one that never stopped."""
    ends = EpochEnds()
    keep = ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_top_k=-1)
    straight, stopped = (mixed(built(member.make), rule) for _ in range(2))
    seed_all(1)
    made = start(straight, member.batches(), callbacks=[ends, keep], enable_checkpointing=True)
    again = start(stopped, member.batches(), folder / "epoch=0.ckpt", callbacks=[EpochEnds(ends.states)])
    assert made.global_step == again.global_step
    assert made.current_epoch == again.current_epoch == EPOCHS
    return [
        {"state": dict(module.state_dict()), "optimizers": [each.state_dict() for each in trainer.optimizers]}
        for module, trainer in ((stopped, again), (straight, made))
    ]


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The largest difference of an entry."""
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one if two[name].numel())
