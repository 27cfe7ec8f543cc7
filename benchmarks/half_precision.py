"""How much of e a network in half precision sees.

``python benchmarks/half_precision.py`` writes ``benchmarks/results/half_precision.json`` and the table in
``docs/benchmarks.md``.

The networks of torchvision are untrained; g is the gradient of cross-entropy on random images. SAM moves the weights by
e, of length rho. What the network sees of e is d: the weights that its operations take at w + e, minus those at w.
Under autocast these are float32 weights rounded to half precision; in half-precision training they are the weights
themselves. Each row says of d:

- length: ||d|| / ||e||;
- along e: the part of e that is there, d . e / ||e||^2; 1 is all of it;
- cosine of d and e;
- moved: the share of the weights that change.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from figures import system, threads_of, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18, resnet50, vit_b_16

from lightning_same import SAM, Rule
from lightning_same.rules.perturbations import StochasticRounding


def vit() -> nn.Module:
    """With a head that is not zero, or no gradient would reach what is before it."""
    net = vit_b_16()
    nn.init.trunc_normal_(net.heads.head.weight, std=0.02)
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-18": (resnet18, 96),
    "ResNet-50": (resnet50, 96),
    "ViT-B/16": (vit, 224),
}
"""And the size of their images."""

RADII = (0.05, 0.2)

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def gradient(net: nn.Module, size: int) -> list[Tensor]:
    """g of four random images."""
    loss = cross_entropy(net(torch.randn(4, 3, size, size)), torch.randint(1000, (4,)))
    return list(torch.autograd.grad(loss, list(net.parameters())))


def seen(rule: Rule, weights: Sequence[Tensor], grads: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """d: the weights in half precision at w + e, minus those at w; the difference is taken in float32."""
    at_w = [weight.detach().to(dtype) for weight in weights]
    params = [weight.detach().clone().requires_grad_() for weight in weights]
    with rule.perturbed(params, grads):
        ahead = [param.detach().to(dtype, copy=True) for param in params]
    return [one.float() - other.float() for one, other in zip(ahead, at_w, strict=True)]


def compared(found: Sequence[Tensor], e: Sequence[Tensor]) -> dict[str, float]:
    """Length and direction of what is seen, beside e."""

    def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
        return sum(torch.sum(one.double() * two).item() for one, two in zip(first, second, strict=True))

    square, product, other = dot(found, found), dot(found, e), dot(e, e)
    moved = sum(int(tensor.count_nonzero()) for tensor in found)
    return {
        "length": (square / other) ** 0.5,
        "along e": product / other,
        "cosine": product / (square * other) ** 0.5 if square else 0.0,
        "moved": moved / sum(tensor.numel() for tensor in found),
    }


def rows_of(name: str) -> list[dict[str, Any]]:
    """All rows of a network."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    weights, g = list(net.parameters()), gradient(net, size)
    norm = sum(grad.double().square().sum() for grad in g).sqrt()
    rows = []
    for rho in RADII:
        e = [(rho * grad / norm).float() for grad in g]
        for precision, dtype in DTYPES.items():
            half, half_g = ([tensor.detach().to(dtype) for tensor in tensors] for tensors in (weights, g))
            ways = {
                f"{precision}-mixed": (SAM(rho), weights, g),
                f"{precision}-true": (SAM(rho), half, half_g),
                f"{precision}-true, `StochasticRounding`": (SAM(rho, perturbation=StochasticRounding()), half, half_g),
            }
            for way, (rule, params, grads) in ways.items():
                figures = compared(seen(rule, params, grads, dtype), e)
                rows.append({"network": name, "rho": rho, "precision": way, **figures})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = threads_of(parser.parse_args())
    warnings.filterwarnings("ignore")
    rows = [row for name in NETWORKS for row in rows_of(name)]
    head = list(rows[0])
    table = [[f"{value:.2g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    write("half_precision", {**system(threads), "rows": rows}, table, head)


if __name__ == "__main__":
    main()
