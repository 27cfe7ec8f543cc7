"""Whether `converged` is true of curvature late in training, against dense Hessians.

``python benchmarks/late_training.py`` trains twelve small networks, one of them twice, and stops at mean losses from
0.1 to 1e-7. At each it measures the top eigenvalue from 20 random starts in float32, by default and with
``confident=True``, and once with ``dtype="auto"``. It compares with the dense Hessian of the same weights: central
differences of the gradient in float64, for no second derivative of torch is asked then. g'Hg / g'g is compared
likewise. Prints a table and writes ``benchmarks/results/late_training.json``.
"""

import argparse
import copy
import json
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from figures import RESULTS, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention

from lightning_same import gradient_curvature, top_eigenvalue

LOSSES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
SEEDS = 20
TOLERANCE = 2e-3
SAMPLES, LENGTH, FEATURES, CLASSES, TOKENS = 40, 4, 6, 4, 12


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


class Embeddings(nn.Module):
    """Predicts the next token; tied, the embeddings are the weights of the head too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(TOKENS, 8), nn.Linear(8 * LENGTH, 8), nn.Linear(8, TOKENS)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(x).flatten(1))))


class Equilibrium(nn.Module):
    """Twenty steps towards the fixed point of one layer, as in a deep equilibrium model."""

    def __init__(self) -> None:
        super().__init__()
        self.inject, self.inner, self.head = nn.Linear(LENGTH * FEATURES, 10), nn.Linear(10, 10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.inject(x.flatten(1))
        z = torch.zeros_like(injected)
        for _ in range(20):
            z = torch.tanh(0.5 * self.inner(z) + injected)
        return self.head(z)


def perceptron(outputs: int = CLASSES) -> nn.Sequential:
    """Two hidden layers."""
    width = LENGTH * FEATURES
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, outputs)
    )


def partly_frozen() -> nn.Module:
    """Two hidden layers, the first of which is not trained."""
    net = perceptron()
    net[1].requires_grad_(False)
    return net


class Task(NamedTuple):
    """What a network learns.

    Attributes:
        net: makes it.
        data: makes the batch.
        loss: of outputs and targets.
        float32_steps: whether the optimizer calculates in float32.
    """

    net: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    float32_steps: bool = False


def classes() -> tuple[Tensor, Tensor]:
    """Noisy classes that every network can learn by heart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(SAMPLES) % CLASSES
    centres = torch.randn(CLASSES, LENGTH, FEATURES, generator=generator)
    return centres[y] + 0.5 * torch.randn(SAMPLES, LENGTH, FEATURES, generator=generator), y


def tokens() -> tuple[Tensor, Tensor]:
    """Random tokens to be learnt by heart."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(TOKENS, (SAMPLES, LENGTH), generator=generator),
        torch.randint(TOKENS, (SAMPLES,), generator=generator),
    )


def values() -> tuple[Tensor, Tensor]:
    """Two smooth functions of the classes' inputs."""
    x, _ = classes()
    return x, torch.stack([torch.sin(x.sum((1, 2)) / 4), x[:, 0, 0] * x[:, 1, 1]], 1)


def sum_of_squares(output: Tensor, target: Tensor) -> Tensor:
    """Half the sum over outputs, the mean over samples."""
    return 0.5 * (output - target).square().sum(1).mean()


NETWORKS: dict[str, Task] = {
    "MLP": Task(perceptron, classes),
    "CNN, BatchNorm": Task(lambda: convolutional(nn.BatchNorm1d), classes),
    "CNN, GroupNorm": Task(lambda: convolutional(lambda channels: nn.GroupNorm(2, channels)), classes),
    "LSTM": Task(Recurrent, classes),
    "transformer": Task(Encoder, classes),
    # At its loss of 0.1 one start of twenty ends at the second eigenvalue.
    "transformer, another training": Task(Encoder, classes, float32_steps=True),
    "attention": Task(Attention, classes),
    "embeddings": Task(lambda: Embeddings(tied=False), tokens),
    "tied embeddings": Task(lambda: Embeddings(tied=True), tokens),
    "deep equilibrium": Task(Equilibrium, classes),
    "frozen layer": Task(partly_frozen, classes),
    "MSE, mean": Task(partial(perceptron, 2), values, mse_loss),
    "MSE, sum": Task(partial(perceptron, 2), values, sum_of_squares),
}


def double(tensor: Tensor) -> Tensor:
    """In float64, if it is not of whole numbers."""
    return tensor.double() if tensor.is_floating_point() else tensor


def trained(net: nn.Module) -> list[Tensor]:
    """The parameters that are not frozen."""
    return [param for param in net.parameters() if param.requires_grad]


class Exact(NamedTuple):
    """In float64.

    Attributes:
        top: the largest eigenvalue of the Hessian.
        along: g'Hg / g'g.
    """

    top: float
    along: float


def dense(task: Task, net: nn.Module, step: float = 1e-4) -> Exact:
    """The Hessian by differences of gradients."""
    net = copy.deepcopy(net).double()
    params = trained(net)
    x, y = map(double, task.data())

    def gradient() -> Tensor:
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(task.loss(net(x), y), params)])

    rows = []
    for param in params:
        flat = param.data.view(-1)
        for index in range(flat.numel()):
            before = flat[index].item()
            flat[index] = before + step
            above = gradient()
            flat[index] = before - step
            rows.append((above - gradient()) / (2 * step))
            flat[index] = before
    matrix = torch.stack(rows)
    matrix, g = (matrix + matrix.T) / 2, gradient()
    return Exact(torch.linalg.eigvalsh(matrix)[-1].item(), (g @ matrix @ g / (g @ g)).item())


def state(name: str, task: Task, net: nn.Module, loss: float, seeds: int, auto: bool) -> dict[str, Any]:
    """One row of the table."""
    exact, (x, y) = dense(task, net), task.data()

    def measured(function: Callable[..., Any] = top_eigenvalue, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(lambda: task.loss(net(x), y), net, tolerance=TOLERANCE, **options)

    found = [measured(seed=seed) for seed in range(seeds)]
    errors = [abs(top.value / exact.top - 1) for top in found]
    row = {
        "network": name,
        "loss": loss,
        "top": exact.top,
        "converged": sum(top.converged for top in found),
        "false": sum(top.converged and error > TOLERANCE for top, error in zip(found, errors, strict=True)),
        "outside": sum(error * exact.top > top.residual for top, error in zip(found, errors, strict=True)),
        "median error": statistics.median(errors),
        "worst error": max(errors),
        "median residual": statistics.median(top.residual / exact.top for top in found),
        "products": statistics.mean(top.hvps for top in found),
    }
    if auto:
        sure = [measured(seed=seed, confident=True, max_products=64) for seed in range(seeds)]
        row["confident converged"] = sum(top.converged for top in sure)
        row["confident false"] = sum(top.converged and abs(top.value / exact.top - 1) > TOLERANCE for top in sure)
        row["confident products"] = statistics.mean(top.hvps for top in sure)
        along = measured(gradient_curvature)
        row["along error"] = abs(along.value - exact.along) / abs(exact.along)
        row["along rounding"] = along.rounding / abs(exact.along)
        finer = measured(dtype="auto")
        row |= {"auto converged": finer.converged, "auto error": abs(finer.value / exact.top - 1)}
        row["auto along error"] = abs(measured(gradient_curvature, dtype="auto").value / exact.along - 1)
    return row


def train(name: str, task: Task, seeds: int, auto: bool) -> list[dict[str, Any]]:
    """The rows of one network."""
    torch.manual_seed(0)
    # Weights are those of float32 throughout, gradients of float64: of float32 they would end where the loss is 1e-7.
    net, rows = task.net() if task.float32_steps else task.net().double(), []
    x, y = map(double, task.data())
    optimizer = torch.optim.Adam(trained(net), lr=0.01)
    waiting = list(LOSSES)
    for step in range(100_000):
        if step % 5 == 0 or task.float32_steps:
            net.eval()
            loss = task.loss(copy.deepcopy(net).double()(x), y).item()
            # At losses that no step of 0.01 reaches, steps are as small as the square root of the loss.
            optimizer.param_groups[0]["lr"] = min(0.01, 0.3 * loss**0.5) if task.loss is not cross_entropy else 0.01
            if loss <= waiting[0]:
                rows.append(state(name, task, copy.deepcopy(net).float(), loss, seeds, auto))
                pairs = ((key, number) for key, number in rows[-1].items() if key != "network")
                print(name, "  ".join(f"{key} {number:.3g}" for key, number in pairs), flush=True)
                waiting.pop(0)
                if not waiting:
                    return rows
            net.train()
        optimizer.zero_grad()
        exact = copy.deepcopy(net).double() if task.float32_steps else net
        task.loss(exact(x), y).backward()
        for param, of_exact in zip(net.parameters(), exact.parameters(), strict=True):
            param.grad = None if of_exact.grad is None else of_exact.grad.to(param.dtype)
        optimizer.step()
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.copy_(tensor.float())
    raise RuntimeError(f"{name} has not reached a loss of {waiting[0]:g}: {loss:.3g} after 100,000 steps.")


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each loss, over the networks in the file; some were measured before a column was there."""
    names = dict.fromkeys(row["network"] for row in rows)
    lines = []
    for index, loss in enumerate(LOSSES):
        at = [[row for row in rows if row["network"] == name][index] for name in names]
        whole = [row for row in at if "along error" in row]
        missed = [row for row in whole if row["along error"] > max(row["along rounding"], TOLERANCE)]
        sure, wrong = (sum(row[f"confident {key}"] for row in whole) for key in ("converged", "false"))
        lines.append(
            [
                f"{loss:g}",
                f"{sum(row['converged'] for row in at)} of {len(at) * SEEDS}, {sum(row['false'] for row in at)}",
                f"{max(row['worst error'] for row in at):.1e}",
                f"{sure} of {len(whole) * SEEDS}, {wrong}",
                f"{sum(row['auto converged'] for row in at)} of {len(at)}, {max(row['auto error'] for row in at):.1e}",
                f"{len(missed)} of {len(whole)}",
                f"{max(row['auto along error'] for row in whole):.1e}",
            ]
        )
    return lines


HEAD = [
    "mean loss",
    "float32: `converged`, of these wrong",
    "worst error",
    "`confident=True`: `converged`, wrong",
    '`dtype="auto"`: `converged`, worst error',
    "g'Hg / g'g: above its estimate",
    'with `dtype="auto"`: worst error',
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", choices=NETWORKS, help="one network; the others' figures stay")
    parser.add_argument("--no-auto", action="store_true", help="of a version without dtype= and confident=")
    parser.add_argument("--output", type=Path, help="write there, and no table")
    asked = parser.parse_args()
    output = asked.output or RESULTS / "late_training.json"
    of: dict[str, list[dict[str, Any]]] = {name: [] for name in NETWORKS}
    if asked.only and output.exists():
        for row in json.loads(output.read_text())["states"]:
            of.setdefault(row["network"], []).append(row)
    for name in [asked.only] if asked.only else NETWORKS:
        of[name] = train(name, NETWORKS[name], asked.seeds, not asked.no_auto)
    rows = [row for rows in of.values() for row in rows]
    if asked.output:
        asked.output.write_text(json.dumps({"states": rows}, indent=1) + "\n")
    else:
        write("late_training", {"states": rows}, table(rows), HEAD)
    print(f"wrong: {sum(row['false'] for row in rows)} of {sum(row['converged'] for row in rows)} converged")


if __name__ == "__main__":
    main()
