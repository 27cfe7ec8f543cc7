"""What the benchmarks train, and how others train it by SAM inside Lightning."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_same.experiments.models import ResNet18

RHO = 0.05


class Workload(NamedTuple):
    """A network, the shape of its batches, and what its inputs are."""

    name: str
    network: Callable[[], nn.Module]
    batch_size: int
    sample: Callable[[int], Tensor]
    classes: int = 10

    def batch(self) -> tuple[Tensor, Tensor]:
        return self.sample(self.batch_size), torch.randint(self.classes, (self.batch_size,))

    def loader(self, batches: int) -> DataLoader[Any]:
        samples = batches * self.batch_size
        data = TensorDataset(self.sample(samples), torch.randint(self.classes, (samples,)))
        return DataLoader(data, self.batch_size)


class Transformer(nn.Module):
    """Two encoder layers of width 64 over 32 tokens, with dropout; 10 classes by the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(dim=1))
        return logits


def _images(samples: int) -> Tensor:
    return torch.randn(samples, 3, 32, 32)


MLP = Workload(
    "MLP 64-128-10, batch 32",
    lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
    32,
    lambda samples: torch.randn(samples, 64),
)
TRANSFORMER = Workload("transformer, batch 32", Transformer, 32, lambda samples: torch.randint(100, (samples, 32)))
RESNET_16 = Workload("ResNet-18, batch 16", lambda: ResNet18(10), 16, _images)
RESNET_64 = Workload("ResNet-18, batch 64", lambda: ResNet18(10), 64, _images)


class Net(pl.LightningModule):
    """Plain automatic training by SGD with momentum and weight decay."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.network = workload.network()

    def loss(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.network)


def sgd(network: nn.Module) -> torch.optim.SGD:
    """The optimizer that all kinds have."""
    return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


class WrapperSAM(torch.optim.Optimizer):
    """The classic style: an optimizer around another, with two steps, written tensor by tensor."""

    def __init__(self, params: Any, base: torch.optim.Optimizer, rho: float) -> None:
        super().__init__(params, {"rho": rho})
        self.base = base
        self.param_groups = base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in params]), p=2)
        scale = RHO / (norm + 1e-12)
        for p in params:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * scale)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()


class ByWrapper(Net):
    """`WrapperSAM` in manual optimization: no replayed randomness or buffers, no safety."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.loss(batch))
        optimizer.first_step()
        self.manual_backward(self.loss(batch))
        optimizer.second_step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return WrapperSAM(self.network.parameters(), sgd(self.network), RHO)


class ByPytorchOptimizer(ByWrapper):
    """pytorch_optimizer's SAM in manual optimization, by the closure that its documentation shows."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        closure()
        optimizer.step(closure)
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return pytorch_optimizer.SAM(  # type: ignore[no-any-return]
            self.network.parameters(), torch.optim.SGD, rho=RHO, lr=1e-3, momentum=0.9, weight_decay=5e-4
        )


class ByHand(ByWrapper):
    """A loop by hand in manual optimization, by multi-tensor operations and without any safety."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        optimizer: Any = self.optimizers()
        params = list(self.network.parameters())
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        with torch.no_grad():
            grads = [p.grad for p in params]
            saved = [p.clone() for p in params]
            scale = RHO / torch.nn.utils.get_total_norm(grads)
            torch._foreach_add_(params, torch._foreach_mul(grads, scale))
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
        optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.network)
