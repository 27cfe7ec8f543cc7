"""Random sets of elements: which element belongs to one, and what the draws depend on."""

import numpy as np
import pytest
import torch

from lightning_same.gradients.random_masks import draws_of, in_ckpt, random_mask


@pytest.mark.parametrize("match", ["count", "norm"])
@pytest.mark.parametrize("seed", range(4))
def test_a_set_is_the_beginning_of_a_random_order_that_comes_nearest(match: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(60, generator=generator, dtype=torch.float64)
    s = g + torch.randn(60, generator=generator, dtype=torch.float64)
    s[::5] = 0
    size = (s != 0).double().numpy() if match == "count" else s.square().numpy()
    for ckpt in (1, 2, 3, 4):
        order = torch.randperm(60, generator=draws_of(seed, ckpt)).numpy()
        wanted = size[in_ckpt(ckpt, g, s).bool().numpy()].sum()
        alive = order[size[order] > 0]
        sums = np.concatenate([[0.0], size[alive].cumsum()])
        nearest = alive[: np.abs(sums - wanted).argmin()]
        found = random_mask(g, s, ckpt, match, draws_of(seed, ckpt))  # type: ignore[arg-type]
        assert sorted(found.nonzero().flatten().tolist()) == sorted(nearest.tolist())


def test_a_large_element_hides_no_small_ones() -> None:
    """1e8 + 1 is 1e8 in float32."""
    g = torch.ones(2001)
    s = torch.full((2001,), 0.5)
    s[:1001] = 2.0
    s[0] = 1e4
    found = random_mask(g, s, 1, "norm", draws_of(0, 0))
    assert abs(s[found].double().square().sum().item() - (1e8 + 4 * 1000)) <= 2


def test_a_seed_at_a_step_is_not_another_seed_at_another_step() -> None:
    first = [torch.rand(4, generator=draws_of(seed, step)).tolist() for seed in range(12) for step in range(12)]
    assert len({tuple(draw) for draw in first}) == 144
    assert first[5] == torch.rand(4, generator=draws_of(0, 5)).tolist()
