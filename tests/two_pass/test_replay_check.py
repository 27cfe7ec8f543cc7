"""The first step that perturbs finds out whether a replay of it would be the same, and says what is not."""

import itertools
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, fit, observed_fit, weights
from support.nets import Everything, Plain, TwoOptimizers, build
from support.ranks import Ranks
from support.real_modules import REAL
from torch import Tensor, nn

import lightning_same
from lightning_same import SAM, CheckpointFractionMonitor, GradientNormPenalty, ReplayCheck, Rule, with_sam


class Environment:
    """Steps by itself, as those of reinforcement learning do."""

    def __init__(self) -> None:
        self.time = 0
        self.seen: list[float] = []

    def step(self, value: float) -> None:
        self.time += 1
        self.seen.append(value)


class StepsEnvironment(Plain):
    """The environment is stepped and the loss does not depend on it, as in DQN."""

    def __init__(self) -> None:
        super().__init__()
        self.environment = Environment()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.environment.step(float(batch_idx))
        return super().training_step(batch, batch_idx)


class Helper:
    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.calls = 0


class DrawsInHelper(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.helper.generator.random())


class CountsInHelper(Plain):
    """A curriculum by a counter in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.helper.calls += 1
        return super().training_step(batch, batch_idx) * (1 + 0.1 * self.helper.calls)


WORLD = {"calls": 0}


class MovesTeacher(Plain):
    """A frozen teacher, more than four times as large as what is trained, that each step moves."""

    def __init__(self, width: int = 200) -> None:
        super().__init__()
        self.teacher = nn.Linear(6, width).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.mul_(0.9)
        return super().training_step(batch, batch_idx)


class RollsTeacher(MovesTeacher):
    """So large that it is not hashed."""

    def __init__(self) -> None:
        super().__init__(3_000_000)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.teacher.weight.data[0] += 0.125
        return Plain.training_step(self, batch, batch_idx)


class CountsInTheWorld(Plain):
    """In a global variable, which nothing can find."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        WORLD["calls"] += 1
        return super().training_step(batch, batch_idx) * (1 + 0.1 * WORLD["calls"])


class AsksFirst(StepsEnvironment):
    """Does what the warning says."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not lightning_same.replaying():
            self.environment.step(float(batch_idx))
        return Plain.training_step(self, batch, batch_idx)


class Caches(Plain):
    """An object that keeps what it has once computed."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self.helper, "cache"):
            self.helper.cache = torch.arange(3)
        return super().training_step(batch, batch_idx)


CALLS = itertools.count()


class RoundingOnly(Plain):
    """Kernels that add up in another order each time, played by factors near 1, another one at each call."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + 1e-6 * (next(CALLS) % 7))


WRONG = [
    (
        StepsEnvironment,
        r"same, but it changes state twice. Not put back: `environment.seen \(length\)`.*`environment.time`",
    ),
    (DrawsInHelper, r"Its loss was [\d.]+, and [\d.]+ in the replay. Not put back: `helper.generator`\."),
    (CountsInHelper, r"Its loss was .* Not put back: `helper.calls`\."),
    (CountsInTheWorld, r"Its loss was .* lies outside the module: a global variable"),
]
RIGHT = [Plain, Everything, AsksFirst, Caches, *REAL]


def checked(kind: Any, **options: Any) -> Any:
    return with_sam(build(kind), SAM(0.1), check_replay=True, **options)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("kind", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_replayed_is_named(kind: Any, message: str, accumulate: int) -> None:
    expected = rf"{kind.__name__}.training_step does not do the same when it is replayed.*{message}"
    with pytest.warns(UserWarning, match=expected) as caught:
        fit(checked(kind), max_epochs=1, accumulate_grad_batches=accumulate)
    assert sum("when it is replayed" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("kind", [MovesTeacher, RollsTeacher])
def test_a_frozen_parameter_that_is_too_large_to_be_held_is_named(kind: Any) -> None:
    with pytest.warns(UserWarning, match=r"it changes state twice. Not put back: `teacher.weight`\. So pass two"):
        fit(checked(kind), max_steps=1)


@pytest.mark.parametrize(("kind", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_beside_a_plain_module_too(kind: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        fit(build(kind), max_epochs=1, callbacks=[ReplayCheck(), CheckpointFractionMonitor(every_n_steps=3)])


@pytest.mark.parametrize(
    ("options", "checked"), [({}, [0]), ({"every_n_steps": 4}, [0, 4]), ({"every_n_steps": 1}, range(6))]
)
def test_beside_a_plain_module_it_checks_the_steps_that_are_asked_for(options: Any, checked: Any) -> None:
    """A check takes two passes beside that of the step."""
    batches: list[int] = []

    class Counts(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batches.append(batch_idx)
            return super().training_step(batch, batch_idx)

    fit(build(Counts), max_epochs=1, callbacks=[ReplayCheck(**options)])
    assert batches == [step for step in range(6) for _ in range(3 if step in checked else 1)]


def test_one_instance_checks_each_fit() -> None:
    check = ReplayCheck()
    fit(build(Plain), max_steps=1, callbacks=[check])
    assert check.report is not None
    assert check.report.is_right
    with pytest.warns(UserWarning, match="CountsInHelper.training_step does not do the same"):
        fit(build(CountsInHelper), max_steps=1, callbacks=[check])
    assert not check.report.is_right


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_it_is_silent_on_what_is_right(kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*when it is replayed")
        fit(checked(kind), max_epochs=1)
        fit(build(kind), max_epochs=1, callbacks=[ReplayCheck(every_n_steps=2)])


def test_rounding_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    beside: dict[str, Any] = {"max_steps": 1, "callbacks": [ReplayCheck()]}
    with warnings.catch_warnings(), caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        warnings.filterwarnings("error", message=".*when it is replayed")
        for fitted in (lambda: fit(checked(RoundingOnly), max_epochs=1), lambda: fit(build(RoundingOnly), **beside)):
            caplog.clear()
            fitted()
            assert any("differs from it by rounding only" in record.message for record in caplog.records)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-scaled"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_check_leaves_no_trace(accumulate: int, precision: Any, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": accumulate, "precision": precision}
    plain = observed_fit(build(Everything), tmp_path, **options)
    forced = with_sam(build(Everything), SAM(0.0), check_replay=True)
    assert differences(plain, observed_fit(forced, tmp_path, **options)) == []
    beside = observed_fit(build(Everything), tmp_path, callbacks=[ReplayCheck(every_n_steps=2)], **options)
    for result in (plain, beside):
        del result["checkpoint file"]
    assert differences(plain, beside) == []


def test_it_is_made_once_in_a_fit_and_can_be_turned_off() -> None:
    for on, passes in ((True, 13), (False, 12)):
        module = with_sam(build(Plain), SAM(0.1), check_replay=on)
        seen: list[int] = []
        module.layers.register_forward_hook(lambda *_, m=module, s=seen: s.append(m.sam_pass))
        fit(module)
        assert seen.count(2) == passes


def test_g_is_that_of_pass_one_though_the_replay_has_another() -> None:
    """By a rule whose d is g."""
    steps = []

    class Grows(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            steps.append(batch_idx)
            return super().training_step(batch, batch_idx) * len(steps)

    found = []
    for check in (True, False):
        steps.clear()
        module = with_sam(build(Grows), GradientNormPenalty(0.1, alpha=0.0), check_replay=check)
        with nullcontext() if not check else pytest.warns(UserWarning, match="does not do the same"):
            fit(module, max_epochs=1, limit_train_batches=1)
        found.append(weights(module))
        assert len(steps) == 2 + 2 * check
    assert all(map(torch.equal, *found))


def test_manual_optimization_is_checked_too() -> None:
    class Wrong(TwoOptimizers):
        def __init__(self) -> None:
            super().__init__()
            self.helper = Helper()

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            def drawn() -> Tensor:
                return loss_fn() * (1 + self.helper.generator.random())

            self.two_pass_step(drawn, optimizer)

    with pytest.warns(UserWarning, match="Not put back: `helper.generator`"):
        fit(checked(Wrong), max_epochs=1)


def on_ranks(rule: Rule | None, options: dict[str, Any], micro_batches: int) -> dict[str, Any]:
    module = build(Everything)
    if rule is not None:
        module = with_sam(module, rule, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*when it is replayed")
        fit(
            module,
            max_epochs=1,
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo"),
            accumulate_grad_batches=micro_batches,
            limit_val_batches=0,
        )
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"ascent": "local"}, {"accumulate": "micro_batch"}], ids=str)
def test_on_two_processes_it_leaves_no_trace(ranks: dict[int, Ranks], options: dict[str, Any]) -> None:
    plain = ranks[2].run(on_ranks, None, {}, 3)
    assert differences(plain, ranks[2].run(on_ranks, SAM(0.0), {**options, "check_replay": True}, 3)) == []


def helper_on_rank_one() -> list[str]:
    class Wrong(DrawsInHelper):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            step = DrawsInHelper.training_step if self.global_rank == 1 else Plain.training_step
            return step(self, batch, batch_idx)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(checked(Wrong), max_epochs=1, devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
    return [str(warning.message) for warning in caught if "when it is replayed" in str(warning.message)]


def test_a_rank_that_differs_says_so_and_nobody_waits(ranks: dict[int, Ranks]) -> None:
    zero, one = ranks[2].run(helper_on_rank_one)
    assert len(one) == 1
    assert "`helper.generator`" in one[0]
    assert all("`helper" not in message for message in zero)
