"""torch.compile around and inside a mixed module: the weights of eager mode, and no recompiling from step to step."""

import shutil
from typing import Any

import pytest
import torch
import torch._inductor.config
from support.fits import fit
from support.nets import Plain, build
from torch import Tensor, nn

from lightning_same import SAM, SAME, Rule, with_sam


class Frames:
    """A backend that counts what dynamo captures, and runs it as it is."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.number += 1
        return graph.forward


class WithNorm(Plain):
    """BatchNorm and dropout: buffers and random numbers are replayed outside of the compiled graph."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 3))


def train(rule: Rule | None, place: str, backend: Any, epochs: int, kind: Any = WithNorm) -> list[Tensor]:
    torch.compiler.reset()
    module = build(kind)
    if rule is not None:
        module = with_sam(module, rule)
    if place == "submodule":
        module.layers = torch.compile(module.layers, backend=backend)
    fitted = torch.compile(module, backend=backend) if place == "module" else module
    fit(fitted, max_epochs=epochs)
    torch.compiler.reset()
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("place", ["module", "submodule"])
@pytest.mark.parametrize("rule", [SAM(0.3), SAME(1, 2.0, 0.3)], ids=repr)
def test_compiled_by_dynamo_is_eager_without_recompiling(rule: Rule, place: str) -> None:
    """The backend runs what dynamo captures as it is, so that the weights are the same to the last bits."""
    frames = []
    for epochs in (1, 3):
        counter = Frames()
        compiled = train(rule, place, counter, epochs)
        frames.append(counter.number)
        for a, b in zip(compiled, train(rule, "nowhere", None, epochs), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    plain = Frames()
    train(None, place, plain, 1)
    assert frames[0] == frames[1] > 0
    # Pass two runs what pass one has compiled.
    assert frames[0] == plain.number


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor builds its kernels with a C++ compiler")
def test_compiled_by_inductor_is_eager_to_rounding() -> None:
    rule = SAME(1, 2.0, 0.3)
    # Compile in this process: each of a pool would import torch first, for three kernels.
    with torch._inductor.config.patch(compile_threads=1):
        compiled = train(rule, "submodule", "inductor", 1, Plain)
    for a, b in zip(compiled, train(rule, "nowhere", None, 1, Plain), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
