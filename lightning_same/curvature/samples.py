"""How many samples a batch holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def sample_counts(batches: Sequence[Any] | None, samples: int | Sequence[int] | None, one_process: bool) -> list[int]:
    """The number of samples of each batch.

    Args:
        batches: the batches; None stands for a single loss.
        samples: the numbers, if given.
        one_process: whether this process measures alone; the number of samples of a single loss then does not matter.

    Raises:
        ValueError: if they are missing, ambiguous, negative or not one for each batch.
    """
    batch_count = 1 if batches is None else len(batches)
    if samples is None:
        if batches is not None:
            return [leading_dimension(batch) for batch in batches]
        if one_process:
            return [1]
        raise ValueError("Hessian: with `reduce`, say by `samples` how many the loss of this process is a mean over.")
    counts = [samples] if isinstance(samples, int) else list(samples)
    if len(counts) != batch_count or min(counts, default=0) < 0:
        raise ValueError(
            f"Hessian: `samples` must hold {batch_count} numbers >= 0, one for each batch, got {samples!r}."
        )
    return counts


def leading_dimension(batch: Any) -> int:
    """The leading dimension that all tensors of a batch have in common."""
    lengths = {tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim}
    if len(lengths) != 1:
        raise ValueError(
            "Hessian: the number of samples in a batch is unclear, its tensors have leading dimensions"
            f" {sorted(lengths)}. Give `samples`, one number for each batch."
        )
    return int(lengths.pop())


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from _tensors(value)
