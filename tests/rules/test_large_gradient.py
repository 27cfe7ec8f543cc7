"""AE-SAM's choice of steps, against its formula in numpy."""

import numpy as np
import pytest
import torch

from lightning_same import LargeGradient, Memory, Progress

STEPS = 60


@pytest.mark.parametrize("keep", [0.9, 0.5])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_a_step_perturbs_where_g_is_large_for_its_time(keep: float, size: float) -> None:
    gradients = np.random.default_rng(0).normal(size=(STEPS, 5)) * size
    timing, memory = LargeGradient(start=-1.0, end=0.5, keep=keep), Memory([])
    mean = variance = 0.0
    chosen = []
    for step, g in enumerate(gradients):
        q = (g**2).sum()
        mean = keep * mean + (1 - keep) * q
        variance = keep * variance + (1 - keep) * (q - mean) ** 2
        c = -1.0 + 1.5 * step / STEPS
        chosen.append(q >= mean + c * np.sqrt(variance))
        found = timing.confirmed([torch.from_numpy(g)], Progress(step, total=STEPS), memory)
        assert found == chosen[-1]
        assert memory.numbers == pytest.approx({"square.mean": mean, "square.variance": variance}, rel=1e-12)
    assert 10 < sum(chosen) < STEPS - 10
