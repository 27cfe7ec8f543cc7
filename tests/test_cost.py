"""What a step costs, by counts that no machine changes: operations, waits for the device, bytes. Nothing is timed."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nets import Everything, Plain, build, fit
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_same import (
    ASAM,
    GSAM,
    SAM,
    SAME,
    USAM,
    WSAM,
    CheckpointFractionMonitor,
    CheckpointSelect,
    CustomSAME,
    GradientNormMonitor,
    LookSAM,
    Rule,
    with_sam,
)
from lightning_same.gradients import tensors
from lightning_same.replay import tensor_copies
from lightning_same.rules.state import Memory

RULES = [SAM(), ASAM(), USAM(), SAME(1, 2.0), CustomSAME(3.0), CheckpointSelect((1, 4)), WSAM(), GSAM()]
WAITS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "bincount"}


class Counted(TorchDispatchMode):
    """What is dispatched: operations on elements by name, and how many views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            self.views += 1
        else:
            self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def dispatched(rule: Rule, count: int) -> tuple[int, int]:
    """By the rule in its third step, for gradients that are given: operations on elements, and views."""
    params = [torch.randn(60_000 // count, requires_grad=True) for _ in range(count)]
    grads, perturbed_grads = ([torch.randn_like(p) for p in params] for _ in range(2))
    memory = Memory(params)

    def step() -> None:
        with rule.perturbed(params, grads, memory=memory):
            pass
        rule.combine_(grads, perturbed_grads, memory=memory)

    step()
    step()
    with Counted() as counted:
        step()
    return counted.names.total(), counted.views


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_as_many_operations_for_2000_tensors_as_for_10(rule: Rule) -> None:
    few, many = dispatched(rule, 10), dispatched(rule, 2000)
    assert few[0] == many[0]
    if not rule.combination.needs_grads:
        assert few[1] == many[1]


def test_sam_dispatches_no_more_than_its_formula() -> None:
    """To keep w; the norm by four, one of which only names a dtype, and its inverse by two; w + e; and back."""
    assert sum(dispatched(SAM(), 10)) == 9


def test_accelerators_take_the_same_step_by_other_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [torch.randn(5), torch.randn(3, 2), torch.randn(())]
    grads = [torch.randn_like(p) for p in params]
    moved = []
    for devices in (tensors.ONE_CALL, frozenset()):
        monkeypatch.setattr(tensors, "ONE_CALL", devices)
        moved.append([p.clone() for p in params])
        SAM().perturb_(moved[-1], grads, rho=[0.1, 0.0, 0.3])
    for one_call, three, before in zip(*moved, params, strict=True):
        torch.testing.assert_close(one_call, three, rtol=1e-6, atol=1e-6)
        assert one_call is not before
    assert torch.equal(moved[1][1], params[1])
    assert not torch.equal(moved[1][0], params[0])
    few, many = dispatched(SAM(), 10), dispatched(SAM(), 2000)
    assert few == many == (11, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_e_has_its_length_in_half_precision_when_the_gradient_is_small(dtype: torch.dtype) -> None:
    """1/norm is 100,000 here, more than float16 holds."""
    param, grad = torch.zeros(1000, dtype=dtype), torch.full((1000,), 1e-5 / 1000**0.5).to(dtype)
    SAM(0.05).perturb_([param], [grad])
    assert param.float().norm().item() == pytest.approx(0.05, rel=2e-3)


class Steady(Callback):
    """Counts what all steps from the third on dispatch, with everything between them."""

    def __init__(self) -> None:
        self.counted = Counted()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.counted.__enter__()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.counted.__exit__(None, None, None)


class Stateful(Plain):
    """BatchNorm, dropout, a buffer that the forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x)


@pytest.fixture
def like_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compared before it is put back, which only a CPU does for nothing."""
    monkeypatch.setattr(tensor_copies, "_must_be_written", lambda tensor, value: True)


def waits(rule: Rule | None, kind: Any, **options: Any) -> int:
    steady = Steady()
    monitors = (
        [] if rule is None else [CheckpointFractionMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1)]
    )
    fit(with_sam(build(kind), rule), max_epochs=1, callbacks=[*monitors, steady], **options)
    assert steady.counted.names.total() > 50
    return sum(number for name, number in steady.counted.names.items() if name in WAITS)


@pytest.mark.parametrize("rule", [*RULES, LookSAM(k=2)], ids=repr)
@pytest.mark.usefixtures("like_an_accelerator")
def test_no_step_waits_for_the_device(rule: Rule) -> None:
    assert waits(rule, Stateful) == 0


@pytest.mark.usefixtures("like_an_accelerator")
def test_no_accumulated_or_mixed_precision_step_waits_either() -> None:
    assert waits(SAME((1, 4), 2.0), Stateful, accumulate_grad_batches=3) == 0
    assert waits(SAME((1, 4), 2.0), Stateful, precision="bf16-mixed") == 0


def test_the_counter_sees_waits() -> None:
    """`Everything` asks for the value of its loss once in each of four forwards, whose repetition makes eight."""
    once = waits(None, Everything)
    assert once >= 4
    assert waits(SAM(), Everything) > once


@contextmanager
def most_bytes() -> Iterator[Callable[[], int]]:
    """The most that is allocated at once in a ``with`` block, beyond what was there at its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield lambda: most
    alive = most = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)


@pytest.mark.parametrize(("rule", "copies"), [(SAM(), 1), (SAME(1, 2.0), 1), (GSAM(), 1)], ids=repr)
def test_a_rule_needs_room_for_one_copy_of_the_weights(rule: Rule, copies: int) -> None:
    """And for temporaries of a bounded size, scalars apart; the next step needs the same room, and no more."""
    params = [torch.randn(50_000, requires_grad=True) for _ in range(40)]
    size = sum(param.nbytes for param in params)
    bounded = 4 * max(tensors.RUN, 6 * tensors.PIECE)
    grads, perturbed_grads = ([torch.randn_like(p) for p in params] for _ in range(2))
    memory = Memory(params)

    def step() -> None:
        with rule.perturbed(params, grads, memory=memory):
            pass
        if rule.combination.needs_grads:
            rule.combine_(grads, perturbed_grads, memory=memory)

    with most_bytes() as first:
        step()
    with most_bytes() as second:
        step()
    room = size * copies
    passing = size if isinstance(rule, GSAM) else 0
    assert room < first() <= room + bounded + passing
    assert second() <= bounded + passing


def test_the_place_of_the_copy_follows_the_parameters() -> None:
    params = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    memory = Memory(params)
    room = memory.scratch()
    assert [each.data_ptr() for each in memory.view(params[:1]).scratch()] == [room[0].data_ptr()]
    params[0].data = torch.randn(5, dtype=torch.float64)
    assert memory.scratch()[0].shape == (5,)
    assert memory.scratch()[0].dtype == torch.float64
    assert not memory
    assert memory.state_dict({}) == {"numbers": {}, "tensors": {}}
