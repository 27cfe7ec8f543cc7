"""Stochastic rounding of w + e: what half-precision weights keep of e."""

import numpy as np
import pytest
import torch
from support.fits import differences, fit
from support.nets import Plain, build
from torch import Tensor

from lightning_same import (
    SAM,
    Adaptive,
    Friendly,
    Memory,
    Normalized,
    Perturbation,
    Progress,
    Rule,
    StochasticRounding,
    with_sam,
)
from lightning_same.gradients.rounding import round_stochastically

HALVES = [torch.bfloat16, torch.float16]


def rounded(values: list[float], dtype: torch.dtype, count: int = 40_000, of: torch.dtype = torch.float32) -> Tensor:
    """Draws for each value, of shape (values, count)."""
    exact = torch.tensor(values, dtype=of)[:, None].expand(-1, count)
    return round_stochastically(exact, dtype, torch.Generator().manual_seed(0))


def test_float16_is_one_of_numpys_two_neighbours_and_right_in_the_mean() -> None:
    values = [0.3, -0.3, 1.0001, -1.9999, 5.3e-7, -3.1e-8, 60007.0, 2**-14 * 1.0003]
    for value, draws in zip(values, rounded(values, torch.float16), strict=True):
        exact = np.float32(value)
        near = np.float16(value)
        other = np.nextafter(near, np.float16(np.inf if near.astype(np.float32) < exact else -np.inf))
        low, high = sorted([float(near), float(other)])
        assert set(draws.double().tolist()) == {low, high}
        share = (float(exact) - low) / (high - low)
        assert (draws.double() == high).double().mean().item() == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("of", [torch.float32, torch.float64], ids=str)
def test_bfloat16_is_one_of_two_neighbours_and_right_in_the_mean(of: torch.dtype) -> None:
    # By hand: bfloat16 has 7 bits after the first.
    exact = {1.25 * 2**-7: 2.0**-14, 1.0: 2.0**-7, -1.0: -(2.0**-7), -3.0: 2.0**-6, 100.0: 0.5}
    values = [value + 0.25 * distance for value, distance in exact.items()]
    for (value, distance), draws in zip(exact.items(), rounded(values, torch.bfloat16, of=of), strict=True):
        assert set(draws.double().tolist()) == {value, value + distance}
        assert (draws.double() != value).double().mean().item() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_the_dtype_holds_stays(dtype: torch.dtype) -> None:
    """Every number of 16 bits, powers of two, subnormals and infinities among them."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[~numbers.isnan()]
    again = round_stochastically(numbers.float(), dtype, torch.Generator().manual_seed(0))
    assert torch.equal(again, numbers)
    assert round_stochastically(torch.tensor([torch.nan]), dtype, torch.Generator()).isnan().all()


def problem(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(size, 50, generator=generator).mul_(0.05).to(dtype) for size in (300, 700)]
    return params, [torch.randn(param.shape, generator=generator).to(dtype) for param in params]


def seen(perturbation: Perturbation, dtype: torch.dtype) -> tuple[float, float]:
    """What is added to the weights at rho = 0.005: its length along e, in lengths of e, and its whole length."""
    params, grads = problem(dtype)
    before = torch.cat([param.double().flatten() for param in params])
    with Rule(0.005, perturbation).perturbed(params, grads):
        moved = torch.cat([param.double().flatten() for param in params]) - before
    assert torch.equal(torch.cat([param.double().flatten() for param in params]), before)
    g = torch.cat([grad.double().flatten() for grad in grads])
    return (moved @ g / g.norm()).item() / 0.005, moved.norm().item() / 0.005


def test_bfloat16_weights_keep_e_only_with_it() -> None:
    along, length = seen(Normalized(), torch.bfloat16)
    assert along < 0.5
    along, length = seen(StochasticRounding(), torch.bfloat16)
    assert along == pytest.approx(1.0, abs=0.05)
    assert length > 1.5, "the noise of the rounding is there too"


def test_float32_weights_are_not_changed_by_it() -> None:
    moved = []
    for perturbation in (Normalized(), StochasticRounding()):
        params, grads = problem(torch.float32)
        with Rule(0.05, perturbation).perturbed(params, grads):
            moved.append([param.clone() for param in params])
    assert differences(*moved) == []


def test_draws_depend_on_the_seed_and_the_step_alone() -> None:
    def draw(seed: int, step: int) -> list[Tensor]:
        params, grads = problem(torch.bfloat16)
        torch.rand(3)
        state = torch.get_rng_state()
        with SAM(0.05, perturbation=StochasticRounding(seed=seed)).perturbed(params, grads, at=Progress(step)):
            assert torch.equal(torch.get_rng_state(), state)
            return [param.clone() for param in params]

    first = draw(1, 4)
    assert differences(first, draw(1, 4)) == []
    assert differences(first, draw(2, 4))
    assert differences(first, draw(1, 5))


def test_it_is_as_stateful_and_as_free_of_scale_as_what_it_rounds() -> None:
    for perturbation in (Normalized(), Adaptive(), Friendly()):
        wrapped = StochasticRounding(perturbation)
        assert (wrapped.stateful, wrapped.scale_free) == (perturbation.stateful, perturbation.scale_free)
    assert repr(StochasticRounding(seed=3)) == "StochasticRounding(seed=3)"


def test_what_it_rounds_remembers() -> None:
    params, grads = problem(torch.bfloat16)
    memory = Memory(params)
    for _ in range(2):
        with Rule(0.05, StochasticRounding(Friendly())).perturbed(params, grads, memory=memory):
            pass
    assert all(m is not None for m in memory.get("friendly.average"))


def test_a_perturbation_is_asked_for() -> None:
    with pytest.raises(TypeError, match=r"StochasticRounding: `perturbation` must be a Perturbation, got 0.05"):
        StochasticRounding(0.05)  # type: ignore[arg-type]


def test_a_fit_in_bfloat16_sees_it() -> None:
    """And every fit takes the same steps."""
    weights = []
    for perturbation in (None, StochasticRounding(), StochasticRounding()):
        module = with_sam(build(Plain), SAM(0.05, perturbation=perturbation))
        fit(module, max_epochs=1, precision="bf16-true")
        weights.append([param.detach().clone() for param in module.parameters()])
    assert differences(weights[1], weights[2]) == []
    assert differences(weights[0], weights[1])
