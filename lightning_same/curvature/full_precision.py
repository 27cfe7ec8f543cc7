"""Float32 arithmetic that is float32, whatever shortcuts the user has allowed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from typing_extensions import override

RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
"""What recurrent modules call, which takes cuDNN where it can."""


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Products of float32 matrices, convolutions and recurrent layers without TF32 or bfloat16 inside.

    TF32 rounds the factors to 11 bits, an error of about 1e-4 in a Hessian-vector product. cuDNN uses it for
    convolutions by default. torch has an older and a newer setting for it, and reading the older one raises an error
    once the newer one has been used. Afterwards everything is as the user has set it.
    """
    with ExitStack() as stack:
        for put_back in _switch_off():
            stack.callback(put_back)
        yield


def _switch_off() -> list[Callable[[], None]]:
    """Switch every shortcut off; functions that put the former settings back, to be called from the last to the first.

    By the older settings where they can be read, and by the newer ones for the rest: for all of them where a newer one
    has been used, and for oneDNN on CPUs. Releases of torch before 2.9 have the older ones alone.
    """
    matmul, cudnn, onednn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    parts = ((cudnn, "conv"), (cudnn, "rnn"), (onednn, "matmul"), (onednn, "conv"), (onednn, "rnn"))
    newer: list[Any] = [matmul, *(getattr(backend, name, None) for backend, name in parts)]
    settings = [(backend, backend.fp32_precision) for backend in newer if hasattr(backend, "fp32_precision")]
    put_back: list[Callable[[], None]] = [
        partial(_set, backend, "fp32_precision", setting) for backend, setting in settings
    ]
    try:
        precision, by_matmul, by_cudnn = torch.get_float32_matmul_precision(), matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        pass  # A newer one has been used: those below are all there is.
    else:
        put_back += [
            partial(_set, cudnn, "allow_tf32", by_cudnn),
            partial(_set, matmul, "allow_tf32", by_matmul),
        ]
        if precision != "highest":
            put_back.append(partial(torch.set_float32_matmul_precision, precision))
            torch.set_float32_matmul_precision("highest")
        _set(matmul, "allow_tf32", False)
        _set(cudnn, "allow_tf32", False)
    for backend, _ in settings:
        if backend.fp32_precision not in ("ieee", "none"):
            backend.fp32_precision = "ieee"
    return put_back


def _set(backend: Any, name: str, value: Any) -> None:
    """Set what has another value now; a setting that is written counts as chosen by the user."""
    if getattr(backend, name) != value:
        setattr(backend, name, value)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """cuDNN is off. Not by `torch.backends.cudnn.flags`, which raises an error once ``fp32_precision`` has been set."""
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


class RecurrentWithoutCudnn(TorchFunctionMode):
    """Recurrent layers take torch's own kernels, for cuDNN's have no second derivative. Convolutions keep cuDNN's."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RECURRENT:
            with without_cudnn():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
