"""Small synthetic data."""

import torch
from torch import Tensor


def numbers(seed: int = 0) -> torch.Generator:
    """A stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def images(batches: int = 4, size: int = 8, samples: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and their labels."""
    given = numbers()
    return [
        (
            torch.randn(samples, 3, size, size, generator=given),
            torch.randint(0, classes, (samples,), generator=given),
        )
        for _ in range(batches)
    ]


def views(count: int, batches: int = 4, size: int = 8, samples: int = 4) -> list[list[Tensor]]:
    """Batches of several views of the same images."""
    given = numbers()
    bases = [torch.randn(samples, 3, size, size, generator=given) for _ in range(batches)]
    return [[base + 0.3 * torch.randn(base.shape, generator=given) for _ in range(count)] for base in bases]


def sentences(batches: int = 4, samples: int = 4, length: int = 6, words: int = 32) -> list[dict[str, Tensor]]:
    """Batches of words, of which the last ones of every other sentence are padding, with a label each."""
    given = numbers()
    made = []
    for _ in range(batches):
        mask = torch.ones(samples, length, dtype=torch.long)
        mask[::2, -2:] = 0
        made.append(
            {
                "input_ids": torch.randint(0, words, (samples, length), generator=given),
                "attention_mask": mask,
                "labels": torch.randint(0, 2, (samples,), generator=given),
            }
        )
    return made
