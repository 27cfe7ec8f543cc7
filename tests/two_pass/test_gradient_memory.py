"""Gradients whose memory the next backward writes to: DDP's buckets, the pool of CUDA graphs, the user's graphs."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fits import differences, fit
from support.nets import Plain, build
from torch import Tensor, nn

from lightning_same import GSAM, SAM, SAME, Rule, with_sam
from lightning_same.two_pass import gradient_store
from lightning_same.two_pass.gradient_store import GradientStore, uses_cuda_graphs


class InPlace(torch.autograd.Function):
    """A linear layer that returns its weight's gradient in the same memory each time, as a CUDA graph does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pool: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, pool)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, pool = ctx.saved_tensors
        pool.copy_(grad.T @ x)
        return grad @ weight, pool.detach(), None


class Pools:
    """Memory that a replay does not put back, as it does tensors in attributes of the module."""

    def __init__(self) -> None:
        self.tensors = [torch.zeros(10, 6), torch.zeros(3, 10)]


class Graphed(Plain):
    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Tanh(), nn.Linear(10, 3, bias=False))
        self.pooled = pooled
        self.pools = Pools()

    def forward(self, x: Tensor) -> Tensor:
        first, second = (layer.weight for layer in (self.layers[0], self.layers[2]))
        if not self.pooled:
            return (x @ first.T).tanh() @ second.T
        pools = self.pools.tensors
        return InPlace.apply(InPlace.apply(x, first, pools[0]).tanh(), second, pools[1])


def train(rule: Rule, pooled: bool) -> list[Tensor]:
    module = with_sam(build(Graphed, pooled), rule)
    fit(module, max_epochs=1)
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("rule", [SAME((1, 4), 2.0, 0.3), GSAM(0.3)], ids=repr)
def test_g_is_copied_out_of_the_pool_of_cuda_graphs(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_store, "uses_cuda_graphs", lambda device: True)
    assert differences(train(rule, True), train(rule, False)) == []


def test_a_graph_of_the_users_own_that_overwrites_g_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"Graphed.*: pass two has written its gradient where that of pass one was"):
        train(SAME((1, 4), 2.0, 0.3), True)
    assert differences(train(SAM(0.3), True), train(SAM(0.3), False)) == []


def test_cuda_graphs_are_seen_where_torch_compile_has_recorded_some(monkeypatch: pytest.MonkeyPatch) -> None:
    managers: dict[int, Any] = {1: object()}
    trees = SimpleNamespace(get_manager=lambda index, create: managers.get(index))
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    assert uses_cuda_graphs(torch.device("cuda", 1))
    assert not uses_cuda_graphs(torch.device("cuda", 0))
    assert not uses_cuda_graphs(torch.device("cpu"))
    monkeypatch.delitem(sys.modules, "torch._inductor.cudagraph_trees")
    assert not uses_cuda_graphs(torch.device("cuda", 1))


def test_torchs_own_function_is_there() -> None:
    from torch._inductor.cudagraph_trees import get_manager

    assert get_manager(0, False) is None


@pytest.mark.parametrize("overwritten", [True, False])
def test_gradients_are_copied_only_if_somebody_needs_them_later(
    overwritten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_store, "backward_overwrites_grads", lambda trainer: overwritten)
    param, grad = torch.zeros(2, requires_grad=True), torch.ones(2)
    store = GradientStore(trainer=None)  # type: ignore[arg-type]
    for until_backward in (True, False):
        param.grad = grad
        taken = store.take([param], until_backward=until_backward)[param]
        assert (taken is grad) == (until_backward or not overwritten)
        assert torch.equal(taken, grad)
        assert param.grad is None
