"""Moving the weights to w + e and back."""

import pytest
import torch
from support.checkpoint_rules import CASES
from torch import Tensor

from lightning_same import ASAM, SAM


def test_a_zero_gradient_moves_nothing() -> None:
    for rule in (SAM(0.5), ASAM(0.5)):
        w = torch.randn(7)
        before = w.clone()
        with rule.perturbed([w], [torch.zeros(7)]):
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
    grads = [torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([100.0])]
    with SAM(1.0).perturbed(params, grads, [1.0, 2.0, 0.0]):
        assert torch.allclose(torch.cat(params), torch.tensor([0.6, 1.6, 0.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    w, g = torch.zeros(10_000, dtype=dtype), torch.full((10_000,), 300.0, dtype=dtype)
    with SAM(1.0).perturbed([w], [g]):
        assert torch.allclose(w.float(), torch.full((10_000,), 0.01), rtol=1e-2)


def test_inputs_are_left_alone() -> None:
    g, s = [torch.randn(5)], [torch.randn(5)]
    copies = [g[0].clone(), s[0].clone()]
    for rule, *_ in CASES.values():
        (d,) = rule.combine(g, s)
        assert d.data_ptr() != s[0].data_ptr()
        assert torch.equal(g[0], copies[0])
        assert torch.equal(s[0], copies[1])


def test_nothing_waits_for_the_device() -> None:
    """A meta tensor has no values: any `.item()` or data-dependent branch would raise."""
    params = [torch.zeros(10, 3, device="meta"), torch.zeros(4, device="meta")]
    grads: list[Tensor] = [torch.zeros_like(param) for param in params]
    for rule, *_ in CASES.values():
        with rule.perturbed(params, grads):
            pass
        rule.combine(grads, grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_e_has_its_length_in_half_precision_when_the_gradient_is_small(dtype: torch.dtype) -> None:
    """1/norm is 100,000 here, more than float16 holds."""
    param, grad = torch.zeros(1000, dtype=dtype), torch.full((1000,), 1e-5 / 1000**0.5).to(dtype)
    with SAM(0.05).perturbed([param], [grad]):
        assert param.float().norm().item() == pytest.approx(0.05, rel=2e-3)
