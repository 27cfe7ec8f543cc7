"""Cost and accuracy of `top_eigenvalue` and of `SharpnessMonitor` on a ResNet-18 with a CIFAR stem.

``python benchmarks/sharpness.py`` trains on scikit-learn's digits, enlarged to 3x32x32, and stops at five states to
measure from three random starts. It prints a table and writes ``benchmarks/results/sharpness.json``.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset

from lightning_same import SharpnessMonitor, top_eigenvalue

STATES = (0, 10, 30, 60, 100)
STARTS = 3
RESULTS = Path(__file__).parent / "results" / "sharpness.json"


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """ResNet-18 whose first stage has ``width`` channels instead of 64."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage in range(4):
        after = width * 2**stage
        before = after if stage == 0 else after // 2
        layers += [Block(before, after, 1 if stage == 0 else 2), Block(after, after, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def digits() -> TensorDataset:
    """Scikit-learn's digits as 3x32x32 images, normalised."""
    x, y = load_digits(return_X_y=True)
    image = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    image = interpolate((image - 0.3) / 0.38, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    return TensorDataset(image, torch.tensor(y))


class Net(pl.LightningModule):
    """The ResNet, with SGD."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = resnet18(width)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def now() -> float:
    """Seconds; on a CPU those of this process, whatever else the machine is doing."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = now()
    function()
    return now() - start


def accuracy_and_cost(net: Net, batch: list[Tensor], step: int) -> list[dict[str, float]]:
    """Three measurements at one state, each against a search to 1e-5 and beside forward-backward passes."""
    net.eval()  # Or the passes that are timed would move BatchNorm's statistics.

    def loss() -> Tensor:
        return cross_entropy(net.model(batch[0]), batch[1])

    def forward_backward() -> None:
        torch.autograd.grad(loss(), list(net.model.parameters()))

    exact = top_eigenvalue(loss, net.model, tolerance=1e-5, max_products=60, seed=1000, dtype="float64")
    rows = []
    for seed in range(STARTS):
        passes = [seconds(forward_backward) for _ in range(3)]
        found: list[Any] = []
        took = seconds(lambda seed=seed, found=found: found.append(top_eigenvalue(loss, net.model, seed=seed)))
        passes += [seconds(forward_backward) for _ in range(3)]
        rows.append(
            {
                "step": step,
                "seed": seed,
                "top_eigenvalue": found[0].value,
                "bottom_eigenvalue": found[0].bottom,
                "products": found[0].hvps,
                "passes": took / statistics.median(passes),
                "relative_error": abs(found[0].value / exact.value - 1),
            }
        )
        print("  ".join(f"{name} {number:.4g}" for name, number in rows[-1].items()))
    net.train()
    return rows


class TimedMonitor(SharpnessMonitor):
    """Knows how long its measurements take."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.took: list[float] = []

    def _measure(self, *args: Any) -> None:
        self.took.append(seconds(lambda: super(TimedMonitor, self)._measure(*args)))


class Stopwatch(pl.Callback):
    """Times training steps, without what stands before them in the list of callbacks."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.began = now()

    def on_train_batch_end(self, *args: Any) -> None:
        self.took.append(now() - self.began)


def monitoring(net: Net, loader: DataLoader[Any], steps: int) -> tuple[float, float]:
    """Median seconds of a training step and of a measurement in one fit."""
    monitor, watch = TimedMonitor(every_n_steps=max(1, steps // 4)), Stopwatch()
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[monitor, watch],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, loader)
    return statistics.median(watch.took), statistics.median(monitor.took)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage; 64 is ResNet-18")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--monitored_steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = Net(options.width).to(device)
    loader = DataLoader(digits(), options.batch_size, shuffle=True, drop_last=True)
    probe = [each.to(device) for each in next(iter(loader))]

    rows, optimizer, step = [], net.configure_optimizers(), 0
    while step <= max(STATES):
        for batch in loader:
            if step in STATES:
                rows += accuracy_and_cost(net, probe, step)
            if step >= max(STATES):
                break
            optimizer.zero_grad()
            net.training_step([each.to(device) for each in batch]).backward()
            optimizer.step()
            step += 1
        else:
            continue
        break

    step_seconds, measurement_seconds = monitoring(net, loader, options.monitored_steps)
    result = {
        "model": f"ResNet-18, CIFAR stem, width {options.width} of 64",
        "parameters": sum(param.numel() for param in net.parameters()),
        "batch_size": options.batch_size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} thread(s)",
        "system": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "lightning")},
        "median_products": statistics.median(row["products"] for row in rows),
        "most_products": max(row["products"] for row in rows),
        "share_within_1e-3": statistics.mean(row["relative_error"] <= 1e-3 for row in rows),
        "worst_relative_error": max(row["relative_error"] for row in rows),
        "median_forward_backward_passes": statistics.median(row["passes"] for row in rows),
        "most_forward_backward_passes": max(row["passes"] for row in rows),
        "training_step_seconds": step_seconds,
        "monitor_measurement_seconds": measurement_seconds,
        "share_of_training_every_500_steps": measurement_seconds / (500 * step_seconds),
        "measurements": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for name, number in result.items():
        if name != "measurements":
            print(f"{name:<36}{number:.4g}" if isinstance(number, float) else f"{name:<36}{number}")


if __name__ == "__main__":
    main()
