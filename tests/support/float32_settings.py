"""A Hessian-vector product under each way in which TF32 can be allowed, and what is allowed within and afterwards.

Run as a program: the settings are global, and some cannot be taken back.
"""

import json
import os
import sys
from typing import Any

import torch

from lightning_same import Hessian

SETTINGS = {
    "nothing set": "",
    "older": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "newer, all": "torch.backends.fp32_precision = 'tf32'",
    "newer, none": "torch.backends.fp32_precision = 'ieee'",
    "newer, one by one": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "oneDNN": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
}


def allowed() -> dict[str, Any]:
    """What each setting says; "raises" where reading it is an error."""
    reads = {
        "matmul": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
        "cudnn.enabled": lambda: torch.backends.cudnn.enabled,
    }
    for path in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"):
        first, second = path.split(".")
        backend = getattr(getattr(torch.backends, first), second, None)
        if hasattr(backend, "fp32_precision"):
            reads[path] = lambda backend=backend: backend.fp32_precision
    said: dict[str, Any] = {}
    for name, read in reads.items():
        try:
            said[name] = read()
        except RuntimeError:
            said[name] = "raises"
    return said


def measure(setting: str) -> list[dict[str, Any]]:
    exec(setting)
    before = allowed()
    within = {}
    lstm = torch.nn.LSTM(3, 3)

    def loss() -> torch.Tensor:
        within.update(allowed())
        return lstm(torch.ones(2, 1, 3))[0].square().sum()

    hessian = Hessian(loss, lstm)
    hessian @ torch.ones(hessian.size)
    return [before, within, allowed()]


def is_known(name: str) -> bool:
    """Whether this release of torch has the setting."""
    return name in ("nothing set", "older", "medium") or hasattr(torch.backends, "fp32_precision")


if __name__ == "__main__":
    for name, setting in filter(lambda item: is_known(item[0]), SETTINGS.items()):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.write(write, json.dumps([name, measure(setting)]).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            sys.stdout.write(answer.read() + "\n")
        os.waitpid(child, 0)
