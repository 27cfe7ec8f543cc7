"""Which share of the gradient's elements rounding sorts into the four checkpoints.

``python benchmarks/fractions_and_rounding.py`` trains small networks on scikit-learn's digits, takes g and s at the
same weights in float32 and in float64, and compares the checkpoints of every element. Beside it: what a threshold on
both gradients, in units of the last place of the largest element of g, would put into rest. Prints a table and writes
``benchmarks/results/fractions_and_rounding.json``.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same import SAM
from lightning_same.gradients.checkpoints import split

STATES = (0, 20, 100, 400, 1500)
THRESHOLDS = (1, 10, 100)
RHO = 0.05
RESULTS = Path(__file__).parent / "results" / "fractions_and_rounding.json"


class Transformer(nn.Module):
    """Two encoder layers on the rows of an image; the gradient of a key's bias is 0 in exact arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.view(-1, 8, 8))).mean(1))


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Three convolutions with a bias; before BatchNorm its gradient is 0 in exact arithmetic."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), norm(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": mlp,
    "CNN, BatchNorm": lambda: cnn(nn.BatchNorm2d),
    "CNN, GroupNorm": lambda: cnn(lambda channels: nn.GroupNorm(4, channels)),
    "transformer": Transformer,
}


def gradients(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """g and s as flat vectors."""
    params = list(net.parameters())

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(cross_entropy(net(x), y), params)

    g = gradient()
    with SAM(RHO).perturbed(params, g):
        s = gradient()
    flat = [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (g, s)]
    return flat[0], flat[1]


def checkpoint(g: Tensor, s: Tensor) -> Tensor:
    """The checkpoint of each element, 0 for the rest."""
    return sum((k * mask for k, mask in enumerate(split(g, s), 1)), torch.zeros_like(g)).int()


def compared(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """One state: shares of all elements, in percent."""
    g, s = gradients(net, x, y)
    exact = checkpoint(*gradients(copy.deepcopy(net).double(), x.double(), y))
    found = checkpoint(g, s)
    differs = found != exact
    row = {"rest": (found == 0).double().mean().item(), "sorted by rounding": differs.double().mean().item()}
    for factor in THRESHOLDS:
        tiny = torch.maximum(g.abs(), s.abs()) <= factor * torch.finfo(g.dtype).eps * g.abs().max()
        tiny &= found != 0
        row[f"{factor} eps: moved"] = tiny.double().mean().item()
        row[f"{factor} eps: of those sorted by rounding"] = (tiny & differs).double().mean().item()
    # Twice the threshold that |s| = |g| has: the two gradients differ by less than their rounding.
    close = ((s.abs() - g.abs()).abs() <= 1e-5 * g.abs()) & (found != 0)
    row["sorted by rounding, abs(s) within 1e-5 of abs(g)"] = (close & differs).double().mean().item()
    return {name: 100 * share for name, share in row.items()}


def states(make: Callable[[], nn.Module]) -> Iterator[tuple[int, float, nn.Module, Tensor, Tensor]]:
    """A network in training, in training mode, with a batch."""
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = ((x - x.mean()) / x.std()).float()
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(STATES[-1] + 1):
        chosen = torch.randint(len(x), (128,))
        if step in STATES:
            yield step, cross_entropy(net(x[chosen]), y[chosen]).item(), net, x[chosen], y[chosen]
        optimizer.zero_grad()
        loss = cross_entropy(net(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()


def main() -> None:
    rows = []
    for name, make in NETWORKS.items():
        for step, loss, net, x, y in states(make):
            rows.append({"network": name, "step": step, "loss": loss, **compared(net, x, y)})
            print("  ".join(f"{key} {value:.3g}" if key != "network" else name for key, value in rows[-1].items()))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
