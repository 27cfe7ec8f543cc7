"""Every rule against its formula, written in numpy with analytic gradients and optimizers by hand."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from formulas import Arrays, gradient, problem
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_same import (
    ASAM,
    SAM,
    SAME,
    SANER,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    Rule,
    SAMDirection,
    SAMMagnitude,
)
from lightning_same.rules.perturbations import Adaptive
from lightning_same.rules.progress import Progress
from lightning_same.rules.schedules import Ramp
from lightning_same.rules.timing import Every

# --- the oracle: numpy only ---


def ascent(weights: Arrays, grads: Arrays, radii: list[float]) -> Arrays:
    norm = np.sqrt(sum((g**2).sum() for g, rho in zip(grads, radii, strict=True) if rho))
    return [rho * g / norm for g, rho in zip(grads, radii, strict=True)]


def adaptive_ascent(eta: float) -> Callable[[Arrays, Arrays, list[float]], Arrays]:
    def e(weights: Arrays, grads: Arrays, radii: list[float]) -> Arrays:
        t = [np.abs(w) + eta for w in weights]
        norm = np.sqrt(sum(((a * g) ** 2).sum() for a, g, rho in zip(t, grads, radii, strict=True) if rho))
        return [rho * a**2 * g / norm for a, g, rho in zip(t, grads, radii, strict=True)]

    return e


def gains(*by_ckpt: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def d(g: np.ndarray, s: np.ndarray) -> np.ndarray:
        r = s / g
        a, b, c, e = by_ckpt
        return s * np.select([r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)], [a, b, c, e], 1.0)

    return d


def select(*ckpts: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def d(g: np.ndarray, s: np.ndarray) -> np.ndarray:
        r = s / g
        groups = [r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)]
        return np.where(np.any([groups[k - 1] for k in ckpts], axis=0), s, g)

    return d


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


CASES: dict[str, tuple[Rule, Any, Any, Callable[[int], bool]]] = {
    "SAM": (SAM(0.3), ascent, lambda g, s: s, lambda step: True),
    "ASAM": (ASAM(0.7, eta=0.1), adaptive_ascent(0.1), lambda g, s: s, lambda step: True),
    "SAME 1": (SAME(1, 2.0, 0.3), ascent, gains(2, 1, 1, 1), lambda step: True),
    "SAME 2": (SAME(2, 0.5, 0.3), ascent, gains(1, 0.5, 1, 1), lambda step: True),
    "SAME 3": (SAME(3, 3.0, 0.9), ascent, gains(1, 1, 3, 1), lambda step: True),
    "SAME 4": (SAME(4, 2.0, 0.9), ascent, gains(1, 1, 1, 2), lambda step: True),
    "SAME 13": (SAME((1, 3), 2.0, 0.9), ascent, gains(2, 1, 2, 1), lambda step: True),
    "CustomSAME": (CustomSAME(2.0, 0.9), ascent, gains(2, 1, 0.5, 2), lambda step: True),
    "SANER": (SANER(0.75, rho=0.3), ascent, gains(1, 0.25, 1, 1), lambda step: True),
    "SANER on ASAM": (
        SANER(0.75, rho=0.7, perturbation=Adaptive(0.1)),
        adaptive_ascent(0.1),
        gains(1, 0.25, 1, 1),
        lambda step: True,
    ),
    "CheckpointGains": (CheckpointGains(1.5, 0.0, -1.0, 3.0, 0.9), ascent, gains(1.5, 0, -1, 3), lambda step: True),
    "CheckpointSelect 14": (CheckpointSelect((1, 4), 0.9), ascent, select(1, 4), lambda step: True),
    "CheckpointSelect 2": (CheckpointSelect(2, 0.9), ascent, select(2), lambda step: True),
    "SAMDirection": (SAMDirection(0.9), ascent, lambda g, s: np.abs(g) * np.sign(s), lambda step: True),
    "SAMMagnitude": (SAMMagnitude(0.9), ascent, lambda g, s: np.abs(s) * np.sign(g), lambda step: True),
    "SAM every 3": (SAM(0.3, timing=Every(3)), ascent, lambda g, s: s, lambda step: step % 3 == 0),
}


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


# --- ours ---


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


# --- identities ---


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


# --- perturbing ---


def test_a_zero_gradient_moves_nothing() -> None:
    for rule in (SAM(0.5), ASAM(0.5)):
        w = torch.randn(7)
        before = w.clone()
        rule.perturb_([w], [torch.zeros(7)])
        assert torch.equal(w, before)


def test_weights_come_back_bit_for_bit_also_after_an_error() -> None:
    params = [torch.randn(50, 3, requires_grad=True), torch.randn(9)]
    before = [param.detach().clone() for param in params]
    grads = [torch.randn_like(param) * 1e3 for param in before]

    def fail() -> None:
        with SAM(0.123).perturbed(params, grads):
            assert not torch.equal(params[0], before[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_one_norm_over_all_parameters_and_a_radius_for_each() -> None:
    params = [torch.zeros(1), torch.zeros(1), torch.zeros(1)]
    SAM(1.0).perturb_(params, [torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([100.0])], [1.0, 2.0, 0.0])
    assert torch.allclose(torch.cat(params), torch.tensor([0.6, 1.6, 0.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    w, g = torch.zeros(10_000, dtype=dtype), torch.full((10_000,), 300.0, dtype=dtype)
    SAM(1.0).perturb_([w], [g])
    assert torch.allclose(w.float(), torch.full((10_000,), 0.01), rtol=1e-2)


def test_inputs_are_left_alone() -> None:
    g, s = [torch.randn(5)], [torch.randn(5)]
    copies = [g[0].clone(), s[0].clone()]
    for rule, *_ in CASES.values():
        (d,) = rule.combine(g, s)
        assert d.data_ptr() != s[0].data_ptr()
        assert torch.equal(g[0], copies[0])
        assert torch.equal(s[0], copies[1])


# --- schedules ---


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


# --- values ---


def test_reprs_say_what_was_chosen() -> None:
    assert repr(SAM()) == "SAM(rho=0.05)"
    assert repr(SAME(1, rho=0.1)) == "SAME(ckpt=1, condition=2.0, rho=0.1)"
    assert repr(SAME((1, 3), timing=Every(2))) == "SAME(ckpt=(1, 3), condition=2.0, rho=0.05, timing=Every(k=2))"
    assert repr(SANER(perturbation=Adaptive())) == (
        "SANER(alpha=0.5, warmup_epochs=0, rho=0.05, perturbation=Adaptive(eta=0.01))"
    )


def test_rules_are_values() -> None:
    for rule, *_ in CASES.values():
        assert eval(repr(rule)) == rule
        assert hash(eval(repr(rule))) == hash(rule)
    assert SAM(0.1) != SAM(0.2)
    assert SAME([1, 3]) == SAME((1, 3))
    assert SAM() != Rule()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(-0.1), r"SAM: `rho` must be a finite number >= 0, got -0.1"),
        (lambda: SAM(float("nan")), r"SAM: `rho` must be a finite number >= 0, got nan"),
        (lambda: SAM(float("inf")), r"`rho`"),
        (lambda: SAM("0.1"), r"`rho` must be a finite number >= 0, got '0.1'"),
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


def test_numpy_numbers_are_numbers() -> None:
    assert SAM(np.float32(0.5)) == SAM(0.5)
    assert SAME(np.int64(2)) == SAME(2)
    assert SAME(np.array([1, 3])) == SAME((1, 3))
    assert SANER(warmup_epochs=np.int64(3)) == SANER(warmup_epochs=3)


@pytest.mark.parametrize("name", ["perturbation", "timing"])
def test_parts_of_the_wrong_kind_are_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"SAM: `{name}` must be a {name.title()}, got 'every'"):
        SAM(**{name: "every"})


def test_nothing_waits_for_the_device() -> None:
    """A meta tensor has no values: any `.item()` or data-dependent branch would raise."""
    params = [torch.zeros(10, 3, device="meta"), torch.zeros(4, device="meta")]
    grads: list[Tensor] = [torch.zeros_like(param) for param in params]
    for rule, *_ in CASES.values():
        with rule.perturbed(params, grads):
            pass
        rule.combine(grads, grads)
