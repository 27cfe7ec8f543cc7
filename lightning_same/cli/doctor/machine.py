"""What is installed, which devices there are, and what of this package works with them."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import distributed

PACKAGES = ("lightning-same", "torch", "lightning", "torchmetrics", "numpy", "scipy", "torchvision", "jsonargparse")
"""Whose versions are told."""


def versions() -> dict[str, str]:
    """Versions by name."""
    found = {"Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["CUDA of torch"] = torch.version.cuda or getattr(torch.version, "hip", None) or "none"
    if torch.cuda.is_available():
        found["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        if distributed.is_nccl_available():
            nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
            found["NCCL"] = ".".join(map(str, nccl))
    return found


def devices() -> dict[str, str]:
    """The devices, with what matters of each."""
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{of.name}, {of.total_memory / 2**30:.0f} GiB, compute {of.major}.{of.minor}"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def supported() -> dict[str, str]:
    """What of this package works here: "yes", or "no" with the reason."""
    gpus = torch.cuda.device_count()
    on_gpu = torch.cuda.is_available()
    gloo = distributed.is_available() and distributed.is_gloo_available()
    nccl = on_gpu and distributed.is_available() and distributed.is_nccl_available()
    newer = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")
    return {
        "Training on a GPU": _yes(on_gpu or torch.backends.mps.is_available(), "torch sees none"),
        "bf16-mixed": _yes(not on_gpu or torch.cuda.is_bf16_supported(), "the GPU has no bfloat16"),
        "16-mixed with a loss scaler": _yes(on_gpu, "Lightning takes bfloat16 on a CPU"),
        "DDP on CPUs": _yes(gloo, "torch was built without gloo"),
        "DDP on GPUs": _yes(
            nccl and gpus > 1, "torch was built without NCCL" if on_gpu and not nccl else f"{gpus} GPUs"
        ),
        "FSDP2 by ModelParallelStrategy": _yes(
            (newer and gloo) or (nccl and gpus > 1), "on CPUs it needs torch 2.7; on GPUs, two of them"
        ),
        "torch.compile": _yes(
            sys.platform != "win32" and (_installed("triton") if on_gpu else bool(compiler)),
            "Triton is not installed" if on_gpu else "there is no C++ compiler",
        ),
        "Curvature in float64": _yes(not torch.backends.mps.is_available(), "not on MPS; on the CPU it is"),
        "lightning-same fit": _yes(_installed("jsonargparse"), 'pip install "lightning-same[cli]"'),
        "lightning-same plot": _yes(_installed("matplotlib", "pandas"), 'pip install "lightning-same[plots]"'),
        "lightning-same study": _yes(
            _installed("pydantic", "sklearn", "torchvision"), 'pip install "lightning-same[experiments]"'
        ),
        "DeepSpeed, FSDP's first version": "no: refused with the way out",
    }


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _yes(is_supported: bool, otherwise: str) -> str:
    return "yes" if is_supported else f"no: {otherwise}"
