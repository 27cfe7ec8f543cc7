"""What has a second derivative: how to run a forward so that it has one, and losses that have none."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_same.curvature.full_precision import RecurrentWithoutCudnn, ieee_float32
from lightning_same.gradients.graph import nodes

NO_SECOND_DERIVATIVE = (
    "Hessian: an operation in the loss has no second derivative ({}). Replace it while curvature is measured, such as a"
    " fused kernel by its plain form."
)

_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__
"""Of the wrapper, which is the same around every function."""


@contextmanager
def twice_differentiable(device: torch.device) -> Iterator[None]:
    """Full precision, and no kernel whose backward has no derivative.

    Autocast and TF32 are off, attention takes the math backend, compiled modules run eagerly, and recurrent layers
    without cuDNN.

    Raises:
        RuntimeError: if an operation within has no second derivative, with the way out.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
        ieee_float32(),
        RecurrentWithoutCudnn() if device.type == "cuda" else nullcontext(),
    ):
        try:
            yield
        except RuntimeError as error:
            if "derivative for" in str(error) or "double backward" in str(error):
                raise RuntimeError(NO_SECOND_DERIVATIVE.format(str(error).rstrip("."))) from error
            raise


@contextmanager
def evaluated(module: nn.Module | None) -> Iterator[None]:
    """A module in eval mode. By the flags alone: a module may do more in its `eval`, and not undo it in `train`."""
    modules = [] if module is None else list(module.modules())
    modes = [submodule.training for submodule in modules]
    try:
        for submodule in modules:
            submodule.training = False
        yield
    finally:
        for submodule, mode in zip(modules, modes, strict=True):
            submodule.training = mode


@contextmanager
def dense_embeddings(module: nn.Module | None) -> Iterator[None]:
    """Embedding layers without sparse gradients, which have no second derivative. The values are the same."""
    modules = [] if module is None else list(module.modules())
    sparse = [layer for layer in modules if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse]
    try:
        for layer in sparse:
            layer.sparse = False
        yield
    finally:
        for layer in sparse:
            layer.sparse = True


def check_dense(grads: Iterable[Tensor]) -> None:
    """Check that gradients can be derived once more.

    Raises:
        RuntimeError: if one is sparse.
    """
    if any(grad.layout != torch.strided for grad in grads):
        raise RuntimeError(
            "Hessian: a gradient is sparse, and has no second derivative. Make the embedding with sparse=False, or give"
            " the module in place of its parameters: its embedding layers are dense then while curvature is measured."
        )


def custom_functions(loss: Tensor) -> list[str]:
    """Names of the `torch.autograd.Function` classes behind a loss.

    Raises:
        RuntimeError: at a Function whose missing derivative autograd would take for zero.
    """
    names = set()
    for node in nodes(loss):
        function = getattr(node, "_forward_cls", None)
        if function is None:
            continue
        name = function.__qualname__.removeprefix("GeneratedBackwardFor_")  # of an operator by `torch.library`
        if name == "CheckpointFunction":
            raise RuntimeError(
                "Hessian: the loss goes through activation checkpointing with use_reentrant=True, behind which"
                " torch.autograd.grad finds no parameters. Use torch.utils.checkpoint.checkpoint(...,"
                " use_reentrant=False)."
            )
        if _is_once_differentiable(function.backward):
            raise RuntimeError(NO_SECOND_DERIVATIVE.format(f"the backward of {name} is marked `once_differentiable`"))
        names.add(name)
    return sorted(names)


def _is_once_differentiable(backward: Any) -> bool:
    """Whether the decorator is on a backward, maybe beneath others."""
    while backward is not None:
        if getattr(backward, "__code__", None) is _ONCE_DIFFERENTIABLE:
            return True
        backward = getattr(backward, "__wrapped__", None)
    return False
