"""Whether `converged` is true of curvature late in training, against dense Hessians.

``python benchmarks/late_training.py`` trains small networks with cross-entropy and stops at mean losses from 0.1 to
1e-7. At each it measures the top eigenvalue from 20 random starts in float32, and once with ``dtype="auto"``, and
compares with the dense Hessian of the same weights: finite differences of fourth order of the gradient in float64, for
no second derivative of torch is asked then. Prints a table and writes ``benchmarks/results/late_training.json``.
"""

import argparse
import copy
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lightning_same import top_eigenvalue

LOSSES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
SEEDS = 20
TOLERANCE = 2e-3
SAMPLES, LENGTH, FEATURES, CLASSES = 40, 4, 6, 4
RESULTS = Path(__file__).parent / "results" / "late_training.json"


class Recurrent(nn.Module):
    """An LSTM, whose last output is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(FEATURES, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    """A layer of `nn.TransformerEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Attention(nn.Module):
    """A pre-norm block around `scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Linear(8, 24)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).view(len(x), LENGTH, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.head((x + scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


def convolutional(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Two convolutions along the sequence, in evaluation mode."""
    layers: list[nn.Module] = []
    for before, after in ((LENGTH, 8), (8, 8)):
        layers += [nn.Conv1d(before, after, 3, padding=1), norm(after), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * FEATURES, CLASSES))


def perceptron() -> nn.Module:
    """Two hidden layers."""
    width = LENGTH * FEATURES
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, CLASSES)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": perceptron,
    "CNN, BatchNorm": lambda: convolutional(nn.BatchNorm1d),
    "CNN, GroupNorm": lambda: convolutional(lambda channels: nn.GroupNorm(2, channels)),
    "LSTM": Recurrent,
    "transformer": Encoder,
    "attention": Attention,
}


def data() -> tuple[Tensor, Tensor]:
    """Noisy classes that every network can learn by heart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(SAMPLES) % CLASSES
    centres = torch.randn(CLASSES, LENGTH, FEATURES, generator=generator)
    return centres[y] + 0.5 * torch.randn(SAMPLES, LENGTH, FEATURES, generator=generator), y


def dense_top(net: nn.Module, x: Tensor, y: Tensor, step: float = 1e-3) -> float:
    """The largest eigenvalue of the Hessian by differences of gradients."""
    net = copy.deepcopy(net).double()
    params = list(net.parameters())
    rows = []
    for param in params:
        flat = param.data.view(-1)
        for index in range(flat.numel()):
            before, row = flat[index].item(), torch.zeros((), dtype=torch.float64)
            for offset, factor in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
                flat[index] = before + offset * step
                grads = torch.autograd.grad(cross_entropy(net(x.double()), y), params)
                row = row + factor / step * torch.cat([grad.flatten() for grad in grads])
            flat[index] = before
            rows.append(row)
    matrix = torch.stack(rows)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1].item()


def measured(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    """The top eigenvalue without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return top_eigenvalue(lambda: cross_entropy(net(x), y), net, tolerance=TOLERANCE, **options)


def state(name: str, net: nn.Module, x: Tensor, y: Tensor, loss: float, seeds: int, auto: bool) -> dict[str, Any]:
    """One row of the table."""
    exact = dense_top(net, x, y)
    found = [measured(net, x, y, seed=seed) for seed in range(seeds)]
    errors = [abs(top.value / exact - 1) for top in found]
    row = {
        "network": name,
        "loss": loss,
        "top": exact,
        "converged": sum(top.converged for top in found),
        "false": sum(top.converged and error > TOLERANCE for top, error in zip(found, errors, strict=True)),
        "outside": sum(error * exact > top.residual for top, error in zip(found, errors, strict=True)),
        "median error": statistics.median(errors),
        "worst error": max(errors),
        "median residual": statistics.median(top.residual / exact for top in found),
        "products": statistics.mean(top.hvps for top in found),
    }
    if auto:
        finer = measured(net, x, y, dtype="auto")
        row |= {"auto converged": finer.converged, "auto error": abs(finer.value / exact - 1)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--no-auto", action="store_true", help="of a version without dtype=")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    x, y = data()
    rows = []
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        net = make()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        waiting = list(LOSSES)
        for _ in range(100_000):
            net.eval()
            loss = cross_entropy(copy.deepcopy(net).double()(x.double()), y).item()
            if loss <= waiting[0]:
                rows.append(state(name, net, x, y, loss, asked.seeds, not asked.no_auto))
                print("  ".join(f"{key} {value:.3g}" if key != "network" else value for key, value in rows[-1].items()))
                waiting.pop(0)
                if not waiting:
                    break
            net.train()
            # The gradient in float64: in float32 it would end where the loss is 1e-7.
            twin = copy.deepcopy(net).double()
            cross_entropy(twin(x.double()), y).backward()
            for param, of_twin in zip(net.parameters(), twin.parameters(), strict=True):
                assert of_twin.grad is not None
                param.grad = of_twin.grad.float()
            net.load_state_dict({**net.state_dict(), **{k: v for k, v in twin.state_dict().items() if "running" in k}})
            optimizer.step()
            assert math.isfinite(loss)
    asked.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"false: {sum(row['false'] for row in rows)} of {sum(row['converged'] for row in rows)} converged")


if __name__ == "__main__":
    main()
