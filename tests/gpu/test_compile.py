"""torch.compile in its modes, CUDA graphs among them, takes the steps of eager mode."""

from typing import Any

import pytest
import torch

from gpu.machine import fit
from gpu.nets import Noted, made
from lightning_same import GSAM, SAM, SAME, CheckpointFractionMonitor, Rule

pytestmark = pytest.mark.gpu

RULES = [SAM(0.3), SAME((1, 4), 2.0, 0.3), GSAM(0.3)]


def train(rule: Rule, mode: str | None, monitored: bool, accumulate: int) -> list[torch.Tensor]:
    torch.compiler.reset()
    module: Any = made(Noted, rule)
    if mode is not None:
        module.layers = torch.compile(module.layers, mode=mode)
    monitors = [CheckpointFractionMonitor(every_n_steps=1)] if monitored else []
    fit(module, callbacks=monitors, accumulate_grad_batches=accumulate, max_epochs=4)
    return [param.detach().clone() for param in module.parameters()]


@pytest.mark.cuda_only
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("monitored", [False, True], ids=["", "monitored"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_compiled_is_eager(rule: Rule, mode: str, monitored: bool, accumulate: int) -> None:
    """With CUDA graphs, g of pass one lies in a pool that pass two writes to: it has to be copied in time."""
    eager = train(rule, None, monitored, accumulate)
    for ours, expected in zip(train(rule, mode, monitored, accumulate), eager, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda_only
def test_graphs_were_recorded() -> None:
    """Without which the tests above would prove nothing of CUDA graphs."""
    from lightning_same.two_pass.gradient_store import uses_cuda_graphs

    train(RULES[0], "reduce-overhead", False, 1)
    assert uses_cuda_graphs(torch.device("cuda", torch.cuda.current_device()))
