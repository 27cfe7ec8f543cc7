"""What has no second derivative is refused by its name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.hessians import MEASURES
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align

from lightning_same.curvature.eigenvalues import top_eigenvalue


@pytest.mark.parametrize("measure", MEASURES)
def test_what_has_no_second_derivative_is_refused(measure: Callable[..., Any]) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    w = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no second derivative .*once_differentiable.* Replace it"):
        measure(lambda: Once.apply(w).square().sum(), [w])

    def fused() -> Tensor:
        q = w.view(1, 1, 1, 3) * torch.ones(1, 1, 4, 3)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q * w, q)[0].square().sum()

    with pytest.raises(RuntimeError, match=r"no second derivative .*flash_attention.* Replace it"):
        measure(fused, [w])
    boxes = torch.tensor([[0.0, 0, 2, 2]])

    def pooled(image: Tensor) -> Tensor:
        return roi_align(image.view(1, 1, 3, 3), [boxes], 1).square().sum()

    with pytest.raises(RuntimeError, match=r"no second derivative .*roi_align.* Replace it"):
        measure(lambda: pooled(w[:, None] * w), [w])


class FusedCrossEntropy(torch.autograd.Function):
    """As fused kernels are written: the gradient is made in forward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward((logits.softmax(1) - nn.functional.one_hot(y, logits.shape[1])) / len(y))
        return cross_entropy(logits, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad, None


class UnderAutocast(FusedCrossEntropy):
    forward = staticmethod(torch.amp.custom_fwd(FusedCrossEntropy.forward, device_type="cpu"))
    backward = staticmethod(torch.amp.custom_bwd(FusedCrossEntropy.backward, device_type="cpu"))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", [FusedCrossEntropy, UnderAutocast])
def test_a_fused_loss_is_refused_by_its_name(measure: Callable[..., Any], kind: Any) -> None:
    """The gradient of a loss with respect to itself is the constant 1, so that autograd raises nothing."""
    w, x, y = torch.ones(3, 2, requires_grad=True), torch.eye(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(RuntimeError, match=rf"no second derivative .*{kind.__name__}.*once_differentiable.* Replace"):
        measure(lambda: kind.apply(x @ w, y), [w])


@pytest.mark.parametrize("of_input", [True, False])
def test_reentrant_checkpointing_is_refused_with_the_way_out(of_input: bool) -> None:
    net, y = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), torch.tensor([0, 1, 0, 1])
    x = torch.eye(4, 3).requires_grad_(of_input)

    def loss(reentrant: bool) -> Tensor:
        within = x if of_input else net[0](x)
        return cross_entropy(net[2](checkpoint(net[:2] if of_input else net[1], within, use_reentrant=reentrant)), y)

    with pytest.raises(RuntimeError, match=r"use_reentrant=True.* use_reentrant=False"):
        top_eigenvalue(lambda: loss(True), net)
    assert top_eigenvalue(lambda: loss(False), net)[:5] == pytest.approx(
        top_eigenvalue(lambda: cross_entropy(net(x), y), net)[:5], rel=1e-5
    )


def test_a_function_of_ones_own_is_warned_of() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad * ctx.saved_tensors[0]

    w = torch.ones(3, requires_grad=True)
    with pytest.warns(UserWarning, match=r"goes through .*Square.*gradgradcheck") as seen:
        assert top_eigenvalue(lambda: Square.apply(w).sum(), [w]).value == pytest.approx(2)
    assert len(seen) == 1
