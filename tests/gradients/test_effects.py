"""Whose gradient lies in a checkpoint, against numpy by hand and against losses that are really lowered."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_same.gradients.effects import (
    amplifications,
    checkpoint_effects,
    dominated_shares,
    noisy_shares,
    placebo_effects,
)
from lightning_same.gradients.random_masks import draws_of

SHAPES = [(6, 4), (30,), (2, 3, 5)]
Lists = dict[str, list[Tensor]]


def parts(seed: int = 0) -> Lists:
    """Gradients of clean and noisy samples at w and at w + e, with dead elements, and of validation data."""
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]

    found = {"g_clean": drawn(), "g_noisy": drawn(), "validation": drawn()}
    for name in "clean", "noisy":
        found[f"s_{name}"] = [g + 0.7 * r for g, r in zip(found[f"g_{name}"], drawn(), strict=True)]
    for i, shape in enumerate(SHAPES):
        dead = torch.rand(shape, generator=generator) < 0.2
        for name in "g_clean", "g_noisy", "s_clean", "s_noisy":
            found[name][i][dead] = 0
    for gradient in "g", "s":
        pairs = zip(found[f"{gradient}_clean"], found[f"{gradient}_noisy"], strict=True)
        found[gradient] = [a + b for a, b in pairs]
    return found


def flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for tensor in tensors])


def groups(g: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(g == 0, 0, s / np.where(g == 0, 1, g))
    masks = [r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)]
    return [*masks, ~np.any(masks, axis=0)]


def losses_of(p: Lists) -> Lists:
    return {"clean": p["g_clean"], "noisy": p["g_noisy"], "validation": p["validation"]}


@pytest.mark.parametrize("seed", range(3))
def test_effects_are_the_products_on_each_checkpoint_and_sum_up_to_those_of_s(seed: int) -> None:
    p = parts(seed)
    g, s = flat(p["g"]), flat(p["s"])
    found = checkpoint_effects(p["g"], p["s"], losses_of(p))
    for name, of in losses_of(p).items():
        expected = [s[mask] @ flat(of)[mask] for mask in groups(g, s)]
        np.testing.assert_allclose(found.dots[name], expected, rtol=1e-12, atol=1e-12)
        assert abs(found.dots[name].sum().item() - s @ flat(of)) < 1e-12
        lengths = [np.linalg.norm(s[mask]) for mask in groups(g, s)]
        unit = [dot / length if length else 0.0 for dot, length in zip(expected, lengths, strict=True)]
        np.testing.assert_allclose(found.per_unit()[name], unit, rtol=1e-12, atol=1e-12)
    assert abs(sum(found.dots[name].sum().item() for name in ("clean", "noisy")) - s @ g) < 1e-12
    assert abs(found.squares.sum().item() - s @ s) < 1e-12


def test_shares_of_clean_and_noisy_samples_sum_up_to_one() -> None:
    p = parts()
    noisy, clean = (noisy_shares(p["g"], p["s"], p[name]) for name in ("s_noisy", "s_clean"))
    torch.testing.assert_close((noisy + clean)[:4], torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    g, s = flat(p["g"]), flat(p["s"])
    expected = [s[mask] @ flat(p["s_noisy"])[mask] / (s[mask] @ s[mask]) for mask in groups(g, s)[:4]]
    np.testing.assert_allclose(noisy[:4], expected, rtol=1e-12)


def test_a_small_step_lowers_a_loss_by_its_effect() -> None:
    """On a quadratic, whose gradient is known: L(w - t u) = L(w) - t <u, grad> + t^2 u A u / 2."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    matrix, w = root @ root.T, torch.randn(8, generator=generator, dtype=torch.float64)
    g = torch.randn(8, generator=generator, dtype=torch.float64)
    s = g + torch.randn(8, generator=generator, dtype=torch.float64)
    found = checkpoint_effects([g], [s], {"loss": [matrix @ w]}).per_unit()["loss"]
    for effect, mask in zip(found, groups(g.numpy(), s.numpy()), strict=True):
        u = s * torch.from_numpy(mask)
        if u.any():
            u = u / u.norm()
            t = 1e-3
            lowered = (w @ matrix @ w - (w - t * u) @ matrix @ (w - t * u)) / 2
            assert lowered.item() == pytest.approx(t * effect.item() - t**2 * (u @ matrix @ u).item() / 2, rel=1e-9)


def test_placebos_are_as_large_and_know_nothing_of_the_checkpoint() -> None:
    """The mean over many draws of <s m, g_X> is the share of the set times <s, g_X>."""
    p = parts()
    losses = losses_of(p)
    real = checkpoint_effects(p["g"], p["s"], losses)
    draws = draws_of(0, 0)
    counts = [placebo_effects(p["g"], p["s"], losses, "count", draws) for _ in range(3000)]
    norms = [placebo_effects(p["g"], p["s"], losses, "norm", draws) for _ in range(20)]
    g, s = flat(p["g"]), flat(p["s"])
    largest = (s**2).max()
    for found in norms:
        assert (found.squares[:4] - real.squares[:4]).abs().max() <= largest / 2 + 1e-12
    for k, mask in enumerate(groups(g, s)[:4]):
        share = mask.sum() / (s != 0).sum()
        mean = np.mean([found.dots["clean"][k].item() for found in counts])
        spread = np.std([found.dots["clean"][k].item() for found in counts]) / np.sqrt(len(counts))
        assert abs(mean - share * (s @ flat(p["g_clean"]))) < 5 * spread
    assert not any(found.squares[4].item() for found in counts)


def test_amplification_where_clean_and_where_noisy_samples_dominate() -> None:
    p = parts()
    found = amplifications((p["g_clean"], p["s_clean"]), (p["g_noisy"], p["s_noisy"]))
    g_clean, g_noisy, s_clean, s_noisy = (flat(p[name]) for name in ("g_clean", "g_noisy", "s_clean", "s_noisy"))
    clean, noisy = np.abs(g_clean) > np.abs(g_noisy), np.abs(g_noisy) > np.abs(g_clean)
    for name, mask in {"clean_dominated": clean, "noisy_dominated": noisy}.items():
        expected = [
            np.abs(s[mask]).sum() / np.abs(g[mask]).sum()
            for s, g in ((s_clean + s_noisy, g_clean + g_noisy), (s_clean, g_clean), (s_noisy, g_noisy))
        ]
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    shares = dominated_shares(p["g"], p["s"], p["g_clean"], p["g_noisy"])
    masks = groups(flat(p["g"]), flat(p["s"]))
    np.testing.assert_allclose(shares, [noisy[mask].sum() / max(1, mask.sum()) for mask in masks], rtol=1e-12)


def test_an_empty_checkpoint_has_no_effect_and_no_share() -> None:
    g = [torch.ones(5, dtype=torch.float64)]
    s = [torch.full((5,), 2.0, dtype=torch.float64)]
    found = checkpoint_effects(g, s, {"loss": g}).per_unit()["loss"]
    assert found.tolist() == pytest.approx([np.sqrt(5), 0, 0, 0, 0])
    assert noisy_shares(g, s, g).tolist() == pytest.approx([0.5, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="the same shapes"):
        checkpoint_effects(g, [torch.ones(4)], {"loss": g})
