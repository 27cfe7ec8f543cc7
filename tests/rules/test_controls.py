"""The rules that serve as controls: a dose of a checkpoint, and random sets as large as one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_same import SAM, SAME, CheckpointDose, Progress, RandomGains, Rule

SHAPES = [(7, 5), (40,), (3, 4, 5)]


def gradients(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """g and s with dead elements among them."""
    generator = torch.Generator().manual_seed(seed)
    g = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    s = [a + torch.randn(a.shape, generator=generator, dtype=torch.float64) for a in g]
    for a, b in zip(g, s, strict=True):
        dead = torch.rand(a.shape, generator=generator) < 0.3
        a[dead] = b[dead] = 0
    return g, s


def flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for tensor in tensors])


def in_checkpoint(k: int, g: np.ndarray, s: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        r = s / g
    return {1: r > 1, 2: (r > 0) & (r < 1), 3: r < -1, 4: (r < 0) & (r > -1)}[k] & (g != 0)


def gains(rule: Rule, step: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g, s and d/s (1 where s = 0)."""
    g, s = gradients(seed)
    d = flat(rule.combine(g, s, Progress(step)))
    g_, s_ = flat(g), flat(s)
    return g_, s_, np.where(s_ == 0, 1.0, d / np.where(s_ == 0, 1.0, s_))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("dose", [-0.25, 0.5, 2.0])
def test_a_dose_moves_the_step_by_the_same_length_on_every_checkpoint(k: int, dose: float) -> None:
    g, s, gain = gains(CheckpointDose(k, dose))
    mask = in_checkpoint(k, g, s)
    expected = np.where(mask, 1 + dose * np.linalg.norm(s) / np.linalg.norm(s[mask]), 1.0)
    np.testing.assert_allclose(gain, expected, rtol=1e-12)
    assert np.linalg.norm(gain * s - s) == pytest.approx(abs(dose) * np.linalg.norm(s), rel=1e-12)


def test_a_dose_of_nothing_is_sam_and_an_empty_checkpoint_takes_none() -> None:
    g, s = gradients()
    assert all(map(torch.equal, CheckpointDose(2, 0.0).combine(g, s), SAM().combine(g, s)))
    doubled = [2 * a for a in g]
    assert all(map(torch.equal, CheckpointDose(3, 0.5).combine(g, doubled), doubled))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_random_set_has_as_many_elements_none_of_them_dead(k: int) -> None:
    g, s, gain = gains(RandomGains(k, 3.0))
    gain = np.round(gain, 9)
    assert set(gain) == {1.0, 3.0}
    assert (gain == 3).sum() == in_checkpoint(k, g, s).sum()
    assert not (gain[s == 0] == 3).any()
    assert (gain == 3).tolist() != in_checkpoint(k, g, s).tolist()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_random_set_has_as_large_a_norm_up_to_one_element(k: int) -> None:
    g, s, gain = gains(RandomGains(k, 2.0, match="norm"))
    wanted = (s[in_checkpoint(k, g, s)] ** 2).sum()
    assert abs((s[gain == 2] ** 2).sum() - wanted) <= (s**2).max() / 2 + 1e-12


def test_every_element_is_drawn_as_often_as_another() -> None:
    g, s, _ = gains(RandomGains())
    drawn = np.mean([gains(RandomGains(1, 2.0), step)[2] == 2 for step in range(2000)], axis=0)
    share = in_checkpoint(1, g, s).sum() / (s != 0).sum()
    np.testing.assert_allclose(drawn[s != 0], share, atol=5 * np.sqrt(share * (1 - share) / 2000))


def test_the_draws_follow_the_seed_and_the_step_alone() -> None:
    first = gains(RandomGains(seed=1), 5)[2]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert (gains(RandomGains(seed=1), 5)[2] == first).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert (gains(RandomGains(seed=1), 6)[2] != first).any()
    assert (gains(RandomGains(seed=2), 5)[2] != first).any()


@pytest.mark.parametrize("rule", [CheckpointDose(2, 0.7), RandomGains(2, 2.0), RandomGains(2, 2.0, match="norm")])
def test_a_loss_scale_passes_through(rule: Rule) -> None:
    g, s = gradients()
    d = rule.combine(g, s, Progress(3))
    scaled = rule.combine([a * 1024 for a in g], [b * 1024 for b in s], Progress(3))
    for a, b in zip(d, scaled, strict=True):
        torch.testing.assert_close(a * 1024, b, rtol=1e-12, atol=0)


def test_same_and_its_placebo_of_equal_norm_are_equally_far_from_sam() -> None:
    _, s, same = gains(SAME(1, 2.0))
    _, _, placebo = gains(RandomGains(1, 2.0, match="norm"))
    assert np.linalg.norm((same - 1) * s) == pytest.approx(np.linalg.norm((placebo - 1) * s), rel=0.03)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"RandomMask: `match` must be 'count' or 'norm', got 'size'"):
        RandomGains(match="size")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Dose: `ckpt` must be one of 1, 2, 3, 4 .*got 5"):
        CheckpointDose(5)
