"""Whose gradient lies in a checkpoint, and whose loss a step along it lowers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_same.gradients.checkpoints import CKPTS, check_aligned, split
from lightning_same.gradients.random_masks import Match, random_mask
from lightning_same.gradients.tensors import inverse

GROUPS = (*(f"ckpt{k}" for k in CKPTS), "rest")


class Effects(NamedTuple):
    r"""What a step along each group of elements does, to first order.

    Attributes:
        dots: for each name of a loss X the products <s_k, g_X>, where s_k is s on group k and 0 elsewhere: by how much
            a step -lr * s_k lowers X, over lr. Shape (5,), in the order of `GROUPS`. They sum up to <s, g_X>.
        squares: \|\|s_k\|\|^2, likewise. They sum up to \|\|s\|\|^2.
    """

    dots: dict[str, Tensor]
    squares: Tensor

    def per_unit(self) -> dict[str, Tensor]:
        r"""<s_k, g_X> / \|\|s_k\|\|: what a step of length one does; 0 for an empty group."""
        return {name: dot * inverse(self.squares.sqrt()) for name, dot in self.dots.items()}


class Amplification(NamedTuple):
    r"""How much larger s is than g, on elements where one kind of sample has the larger gradient.

    Attributes:
        whole: the sum of \|s\| over that of \|g\|.
        clean: the sum of \|s_clean\| over that of \|g_clean\|.
        noisy: the sum of \|s_noisy\| over that of \|g_noisy\|.
    """

    whole: Tensor
    clean: Tensor
    noisy: Tensor


@torch.no_grad()
def checkpoint_effects(
    grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], loss_grads: Mapping[str, Sequence[Tensor]]
) -> Effects:
    """The effect of a step along s on each of the four checkpoints, and on the rest.

    Args:
        grads: g, one tensor per parameter, which the split goes by.
        perturbed_grads: s, the same shapes.
        loss_grads: the gradients of the losses at w, by name; the same shapes. Where some of them sum up to g, their
            effects sum up to that on the whole loss.

    Returns:
        The effects, summed up in float64 (float32 on Apple's MPS).

    Raises:
        ValueError: if the lists are empty or do not match.
    """
    check_aligned(grads, perturbed_grads)
    dtype = _wide(grads[0])
    squares = torch.zeros(len(GROUPS), dtype=dtype, device=grads[0].device)
    dots = {name: torch.zeros_like(squares) for name in loss_grads}
    for i, (g, s) in enumerate(zip(grads, perturbed_grads, strict=True)):
        masks = _groups(g, s)
        wide = s.to(dtype).flatten()
        squares += masks @ wide.square()
        for name, of in loss_grads.items():
            dots[name] += masks @ (wide * of[i].to(dtype).flatten())
    return Effects(dots, squares)


@torch.no_grad()
def placebo_effects(
    grads: Sequence[Tensor],
    perturbed_grads: Sequence[Tensor],
    loss_grads: Mapping[str, Sequence[Tensor]],
    match: Match,
    draws: torch.Generator,
) -> Effects:
    """The same for four random sets of elements, each as large as a checkpoint; the last group is empty.

    Args:
        grads: g.
        perturbed_grads: s.
        loss_grads: the gradients of the losses at w, by name.
        match: as many elements, ``"count"``, or as large a sum of s^2, ``"norm"``.
        draws: a generator on the CPU.

    Returns:
        The effects.

    Raises:
        ValueError: if the lists are empty or do not match.
    """
    check_aligned(grads, perturbed_grads)
    g, s = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (grads, perturbed_grads))
    dtype = _wide(s)
    rows = [random_mask(g, s, k, match, draws).to(dtype) for k in CKPTS]
    masks = torch.stack([*rows, torch.zeros_like(rows[0])])
    s = s.to(dtype)
    dots = {
        name: masks @ (s * torch.cat([tensor.flatten() for tensor in of]).to(dtype)) for name, of in loss_grads.items()
    }
    return Effects(dots, masks @ s.square())


@torch.no_grad()
def noisy_shares(
    grads: Sequence[Tensor], perturbed_grads: Sequence[Tensor], noisy_perturbed: Sequence[Tensor]
) -> Tensor:
    r"""The share of s on each checkpoint that comes from noisy samples: <s_k, s_noisy> / \|\|s_k\|\|^2.

    With s = s_clean + s_noisy, that of the clean samples is one minus it. It is negative where the noisy samples pull
    the other way, and 0 where the checkpoint is empty.

    Args:
        grads: g.
        perturbed_grads: s.
        noisy_perturbed: s_noisy, the same shapes.

    Returns:
        Shape (5,), in the order of `GROUPS`.
    """
    found = checkpoint_effects(grads, perturbed_grads, {"noisy": noisy_perturbed})
    return found.dots["noisy"] * inverse(found.squares)


@torch.no_grad()
def amplifications(
    clean: tuple[Sequence[Tensor], Sequence[Tensor]], noisy: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> dict[str, Amplification]:
    r"""How much the second pass amplifies gradients, where clean and where noisy samples have the larger one.

    An element is noise-dominated if \|g_noisy\| > \|g_clean\|. The published explanation of SAM's robustness (Luong et
    al., arXiv 2411.17132) is that clean gradients are amplified more there.

    Args:
        clean: g_clean and s_clean, one tensor per parameter.
        noisy: g_noisy and s_noisy, the same shapes.

    Returns:
        Under ``clean_dominated`` and ``noisy_dominated``; 0 where there is no such element.
    """
    first = clean[0][0]
    sums = torch.zeros(2, 6, dtype=_wide(first), device=first.device)
    for g_clean, s_clean, g_noisy, s_noisy in zip(*clean, *noisy, strict=True):
        masks = _dominated(g_clean, g_noisy)
        sizes = [s_clean + s_noisy, g_clean + g_noisy, s_clean, g_clean, s_noisy, g_noisy]
        sums += torch.stack([masks @ tensor.to(sums.dtype).abs().flatten() for tensor in sizes], dim=1)
    ratios = sums[:, 0::2] * inverse(sums[:, 1::2])
    return {
        name: Amplification(*row.unbind())
        for name, row in zip(("clean_dominated", "noisy_dominated"), ratios, strict=True)
    }


@torch.no_grad()
def dominated_shares(
    grads: Sequence[Tensor],
    perturbed_grads: Sequence[Tensor],
    clean_grads: Sequence[Tensor],
    noisy_grads: Sequence[Tensor],
) -> Tensor:
    r"""The share of each checkpoint's elements on which \|g_noisy\| > \|g_clean\|; 0 where it is empty.

    Returns:
        Shape (5,), in the order of `GROUPS`.
    """
    counts = torch.zeros(2, len(GROUPS), dtype=_wide(grads[0]), device=grads[0].device)
    for g, s, g_clean, g_noisy in zip(grads, perturbed_grads, clean_grads, noisy_grads, strict=True):
        masks = _groups(g, s)
        counts += torch.stack([masks @ _dominated(g_clean, g_noisy)[1], masks.sum(1)])
    return counts[0] * inverse(counts[1])


def _groups(g: Tensor, s: Tensor) -> Tensor:
    """The masks of the four checkpoints and the rest as numbers, of shape (5, n)."""
    masks = torch.stack([mask.flatten() for mask in split(g, s)])
    return torch.cat([masks, ~masks.any(0, keepdim=True)]).to(_wide(s))


def _dominated(g_clean: Tensor, g_noisy: Tensor) -> Tensor:
    """Where clean and where noisy samples have the larger gradient, as numbers of shape (2, n)."""
    clean, noisy = g_clean.abs().flatten(), g_noisy.abs().flatten()
    return torch.stack([clean > noisy, noisy > clean]).to(_wide(g_clean))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
