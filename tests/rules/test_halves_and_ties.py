"""Where precision or equality decides: sums in half precision, gradients of equal size, weights that change dtype."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_same import (
    GSAM,
    SAM,
    SAME,
    SANER,
    CheckpointGains,
    CheckpointSelect,
    CustomSAME,
    LookSAM,
    Memory,
    Progress,
    Rule,
    checkpoint_fractions,
)
from lightning_same.gradients.norms import gradient_norms
from lightning_same.rules.combinations import Chain, Gains, LookSAMReuse, SurrogateGap
from lightning_same.rules.timing import Every

SIZES = st.lists(st.floats(2**-10, 8, width=16), min_size=1, max_size=30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@given(sizes=SIZES)
def test_elements_of_equal_size_are_in_no_checkpoint(dtype: torch.dtype, sign: int, sizes: list[float]) -> None:
    g = torch.tensor(sizes, dtype=torch.float64).to(dtype) * torch.tensor([1, -1]).repeat(15)[: len(sizes)].to(dtype)
    s = sign * g
    assert checkpoint_fractions([g], [s]) == (0, 0, 0, 0, 1)
    assert gradient_norms([g], [s])[2:6] == (0, 0, 0, 0)
    for rule in (SAME(1, 3.0), SAME((1, 2, 3, 4), 3.0), CustomSAME(3.0), SANER(0.75), CheckpointGains(2, 3, 4, 5)):
        assert torch.equal(rule.combine([g], [s])[0], s)
    for ckpts in (1, 2, 3, 4, (1, 2, 3, 4)):
        assert torch.equal(CheckpointSelect(ckpts).combine([g], [s])[0], g)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tensors", [1, 100])
def test_the_dot_products_of_a_large_model_do_not_round_in_half_precision(dtype: torch.dtype, tensors: int) -> None:
    """GSAM's and LookSAM's parts against the same in float64: a sum of 1e5 products in half precision stands still."""
    generator = torch.Generator().manual_seed(0)
    g = [(torch.randn(100_000 // tensors, generator=generator) + 0.5).to(dtype) for _ in range(tensors)]
    s = [(x + 0.3 * torch.randn(x.shape, generator=generator)).to(dtype) for x in g]
    flat_g, flat_s = (torch.cat(x).double() for x in (g, s))
    along = (flat_g @ flat_s) / (flat_s @ flat_s)
    expected = flat_s - 0.4 * (flat_g - along * flat_s)
    found = torch.cat(GSAM(alpha=0.4).combine(g, s)).double()
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * step, atol=2 * step)

    memory, rule = Memory(g), LookSAM(alpha=0.7)
    rule.combine(g, s, memory=memory)
    d = [x.clone() for x in g]
    rule.plain_step_(d, memory)
    u = flat_s - (flat_g @ flat_s) / (flat_g @ flat_g) * flat_g
    expected = flat_g + 0.7 * flat_g.norm() * u / u.norm()
    # u is kept in half precision, and is small beside g.
    torch.testing.assert_close(torch.cat(d).double(), expected, rtol=8 * step, atol=8 * step)


def test_a_copy_of_the_weights_has_their_precision_also_when_that_has_changed() -> None:
    """float32 would cut off what stands behind the seventh digit."""
    w = torch.randn(50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    memory, rule = Memory([w]), SAM(0.1)
    for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16):
        w.data = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        before = w.detach().clone()
        with rule.perturbed([w], [torch.ones(50, dtype=dtype)], memory=memory):
            assert not torch.equal(w, before)
        assert torch.equal(w, before)


@pytest.mark.parametrize(
    "links",
    [[LookSAMReuse(0.7), Gains(ckpt1=2.0)], [Gains(ckpt1=2.0), LookSAMReuse(0.7)], [SurrogateGap(0.3), LookSAMReuse()]],
    ids=repr,
)
def test_a_chain_carries_what_any_of_its_links_carries(links: list[Rule]) -> None:
    rule = Rule(0.3, combination=Chain(links), timing=Every(2))
    g, s = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 1.0])]
    with pytest.raises(ValueError, match=r"Make `memory = Memory\(params\)`"):
        rule.combine(g, s)
    memory = Memory(g)
    rule.combine(g, s, Progress(0), memory)
    plain: list[Tensor] = [g[0].clone()]
    rule.plain_step_(plain, memory)
    assert not torch.equal(plain[0], g[0])
