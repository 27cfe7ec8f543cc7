"""The clean and the noisy samples of a batch, cut out of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_same.trainer.distributed import sum_over_processes

NoisyMask = Callable[[Any], Tensor]
"""Says which samples of a batch are noisy: a boolean tensor of shape (n,)."""


class Samples(NamedTuple):
    """Some samples of a batch on this process.

    Attributes:
        batch: a batch of them alone; any batch where there are none.
        weight: their share of all samples of their kind on all processes.
    """

    batch: Any
    weight: float


def clean_and_noisy(trainer: pl.Trainer, module: nn.Module, batch: Any, noisy_mask: NoisyMask) -> dict[str, Samples]:
    """The ``"clean"`` and the ``"noisy"`` samples, if there are any on any process.

    Raises:
        ValueError: if the mask is not a boolean vector, or no tensor in the batch is as long.
    """
    noisy = noisy_mask(batch)
    if not (isinstance(noisy, Tensor) and noisy.dtype == torch.bool and noisy.dim() == 1):
        got = f"{noisy.dtype} of shape {tuple(noisy.shape)}" if isinstance(noisy, Tensor) else repr(noisy)
        raise ValueError(f"`noisy_mask` must return a boolean tensor with one element per sample, got {got}.")
    masks = {"clean": ~noisy, "noisy": noisy}
    # The mask may be on the host, for whose tensors NCCL has no reduction.
    counts = torch.stack([mask.sum() for mask in masks.values()]).to(trainer.strategy.root_device)
    # BatchNorm fails on a single sample.
    fewest = 2 if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()) else 1
    counts = torch.where(counts < fewest, 0, counts)
    totals = sum_over_processes(trainer, counts.clone())
    return {
        name: Samples(_rows(batch, mask) if count else batch, count / total)
        for (name, mask), count, total in zip(masks.items(), counts.tolist(), totals.tolist(), strict=True)
        if total
    }


def _rows(batch: Any, mask: Tensor) -> Any:
    """The batch, cut down to the samples under the mask."""
    was_cut = False

    def rows(tensor: Tensor) -> Tensor:
        nonlocal was_cut
        if tensor.dim() == 0 or len(tensor) != len(mask):
            return tensor
        was_cut = True
        return tensor[mask.to(tensor.device)]

    cut = apply_to_collection(batch, Tensor, rows)
    if not was_cut:
        raise ValueError(
            f"`noisy_mask` returned {len(mask)} elements, but the batch, a {type(batch).__name__}, holds no tensor of"
            " that length to cut. Tensors may be nested in lists, tuples, mappings and dataclasses."
        )
    return cut
