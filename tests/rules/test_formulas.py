"""Every rule against its formula, written in numpy with analytic gradients and optimizers by hand."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoint_rules import CASES
from support.formulas import Arrays, gradient, problem
from torch import nn

from lightning_same import ASAM, SAM, SAME, SANER, CheckpointGains, CheckpointSelect, CustomSAME, Rule
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Ramp
from lightning_same.rules.timing import Every


class HandSGD:
    """Momentum 0.9, learning rate 0.05, weight decay by group, as torch's SGD defines them."""

    torch_class = torch.optim.SGD
    options: ClassVar = {"lr": 0.05, "momentum": 0.9}

    def __init__(self) -> None:
        self.velocity: Arrays | None = None

    def step(self, weights: Arrays, d: Arrays, decay: list[float]) -> Arrays:
        d = [x + wd * w for x, w, wd in zip(d, weights, decay, strict=True)]
        self.velocity = d if self.velocity is None else [0.9 * v + x for v, x in zip(self.velocity, d, strict=True)]
        return [w - 0.05 * v for w, v in zip(weights, self.velocity, strict=True)]


class HandAdamW:
    """Loshchilov and Hutter's AdamW with learning rate 0.01 and torch's defaults."""

    torch_class = torch.optim.AdamW
    options: ClassVar = {"lr": 0.01}

    def __init__(self) -> None:
        self.t = 0
        self.m: Any = 0.0
        self.v: Any = 0.0

    def step(self, weights: Arrays, d: Arrays, decay: list[float]) -> Arrays:
        self.t += 1
        m = [np.zeros_like(x) for x in d] if self.t == 1 else self.m
        v = [np.zeros_like(x) for x in d] if self.t == 1 else self.v
        self.m = [0.9 * a + 0.1 * x for a, x in zip(m, d, strict=True)]
        self.v = [0.999 * a + 0.001 * x**2 for a, x in zip(v, d, strict=True)]
        update = [
            (a / (1 - 0.9**self.t)) / (np.sqrt(b / (1 - 0.999**self.t)) + 1e-8)
            for a, b in zip(self.m, self.v, strict=True)
        ]
        return [w * (1 - 0.01 * wd) - 0.01 * u for w, u, wd in zip(weights, update, decay, strict=True)]


def by_hand(name: str, optimizer: Any, decay: list[float], scale: list[float] | None) -> tuple[Arrays, list[set[int]]]:
    rule, e_of, d_of, active = CASES[name]
    weights, batches = problem()
    radii = [rule.rho] * 4 if scale is None else [rule.rho * each for each in scale]
    seen: list[set[int]] = []
    for step, batch in enumerate(batches):
        d = g = gradient(weights, batch)
        if active(step):
            e = e_of(weights, g, radii)
            s = gradient([w + x for w, x in zip(weights, e, strict=True)], batch)
            d = [d_of(a, b) for a, b in zip(g, s, strict=True)]
            r = np.concatenate([(b / a).ravel() for a, b in zip(g, s, strict=True)])
            seen.append(set(np.digitize(r, [-1, 0, 1]).tolist()))
        weights = optimizer.step(weights, d, decay)
    return weights, seen


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for param, value in zip(net.parameters(), problem()[0], strict=True):
        param.data = torch.from_numpy(value.copy())
    return net


def by_rule(rule: Rule, optimizer_class: Any, options: Any, decay: list[float], scale: list[float] | None) -> Arrays:
    net = network()
    params = list(net.parameters())
    groups = [{"params": [param], "weight_decay": wd} for param, wd in zip(params, decay, strict=True)]
    optimizer = optimizer_class(groups, **options)
    rho = None if scale is None else [rule.rho * each for each in scale]
    for step, batch in enumerate(problem()[1]):
        x, y = map(torch.from_numpy, batch)
        at = Progress(step)
        grads: Any = torch.autograd.grad(nn.functional.mse_loss(net(x), y), params)
        step_grads = list(grads)
        if rule.timing.active(at):
            with rule.perturbed(params, grads, rho):
                perturbed = torch.autograd.grad(nn.functional.mse_loss(net(x), y), params)
            step_grads = rule.combine(grads, perturbed, at)
        for param, grad in zip(params, step_grads, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach().numpy() for param in params]


@pytest.mark.parametrize("hand", [HandSGD, HandAdamW])
@pytest.mark.parametrize(
    ("decay", "scale"),
    [([0.01] * 4, None), ([0.1, 0.0, 0.1, 0.0], [1.0, 0.0, 2.0, 0.5])],
    ids=["one radius", "a radius for each group"],
)
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_equal_the_formula(name: str, hand: Any, decay: list[float], scale: list[float] | None) -> None:
    expected, _ = by_hand(name, hand(), decay, scale)
    found = by_rule(CASES[name][0], hand.torch_class, hand.options, decay, scale)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_problem_visits_all_four_checkpoints() -> None:
    _, seen = by_hand("SAME 4", HandSGD(), [0.0] * 4, None)
    assert set().union(*seen) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "rule",
    [
        SAME(condition=1, rho=0.3),
        SAME((1, 2, 3, 4), condition=1, rho=0.3),
        CustomSAME(condition=1, rho=0.3),
        SANER(alpha=0, rho=0.3),
        CheckpointGains(rho=0.3),
        CheckpointSelect(rho=0.3),
        SAM(0.3, timing=Every(1)),
        Rule(0.3),
    ],
    ids=repr,
)
def test_special_cases_are_sam_bit_for_bit(rule: Rule) -> None:
    one = by_rule(rule, torch.optim.SGD, HandSGD.options, [0.01] * 4, None)
    sam = by_rule(SAM(0.3), torch.optim.SGD, HandSGD.options, [0.01] * 4, None)
    assert all(np.array_equal(a, b) for a, b in zip(one, sam, strict=True))


@pytest.mark.parametrize(
    "rule", [SAM(0.0), ASAM(0.0), SAME(1, 5.0, 0.0), CustomSAME(4.0, 0.0), CheckpointSelect((1, 4), 0.0)], ids=repr
)
def test_rho_zero_is_no_sam_bit_for_bit(rule: Rule) -> None:
    plain = SAM(0.3, timing=Every(10**9))
    assert not plain.timing.active(Progress(1))
    one = by_rule(rule, torch.optim.AdamW, HandAdamW.options, [0.01] * 4, None)
    two = by_rule(Never(), torch.optim.AdamW, HandAdamW.options, [0.01] * 4, None)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


class Never(SAM):
    def __init__(self) -> None:
        super().__init__(0.3, timing=NeverTiming(1))


class NeverTiming(Every):
    def active(self, at: Progress) -> bool:
        return False


elements = st.floats(-3, 3, width=32)


@given(pairs=st.lists(st.tuples(elements, elements), min_size=1, max_size=20))
def test_all_four_selected_is_sam_outside_rest(pairs: list[tuple[float, float]]) -> None:
    g, s = (torch.tensor(column) for column in zip(*pairs, strict=True))
    (d,) = CheckpointSelect((1, 2, 3, 4)).combine([g], [s])
    rest = (g == 0) | (s == 0) | (g.abs() == s.abs())
    assert torch.equal(d[~rest], s[~rest])
    assert torch.equal(d[rest], g[rest])


@pytest.mark.parametrize("rule", [case[0] for case in CASES.values()], ids=list(CASES))
@given(pairs=st.lists(st.tuples(elements, elements), min_size=1, max_size=20), power=st.integers(-10, 16))
def test_a_loss_scale_passes_through(rule: Rule, pairs: list[tuple[float, float]], power: int) -> None:
    g, s = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    (d,) = rule.combine([g], [s])
    (scaled,) = rule.combine([g * 2.0**power], [s * 2.0**power])
    assert torch.equal(scaled, d * 2.0**power)


def test_saner_warms_up_over_epochs() -> None:
    rule = SANER(alpha=0.5, warmup_epochs=5)
    g, s = [torch.ones(1)], [torch.full((1,), 0.5)]
    gains_seen = [rule.combine(g, s, Progress(epoch=epoch))[0].item() / 0.5 for epoch in range(7)]
    assert gains_seen == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5])
    assert SANER(alpha=0.5).combine(g, s)[0].item() == 0.25


def test_gains_may_ramp() -> None:
    rule = CheckpointGains(ckpt1=Ramp(1.0, 3.0, 2))
    g, s = [torch.ones(1)], [torch.full((1,), 2.0)]
    assert [rule.combine(g, s, Progress(epoch=epoch))[0].item() for epoch in range(3)] == [4.0, 6.0, 6.0]
