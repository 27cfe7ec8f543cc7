"""Graph networks: `torch_geometric` on graphs and on nodes, and the LightningModule of `chemprop`."""

from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from zoo.data import numbers
from zoo.member import Member

REASON = "needs {0}: pip install 'lightning-same[zoo]'"


class Gin(pl.LightningModule):
    """Classifies graphs; a batch is one graph of several parts."""

    def __init__(self) -> None:
        super().__init__()
        models = pytest.importorskip("torch_geometric.nn", reason=REASON.format("torch-geometric"))
        self.net = models.GIN(4, 8, 2, dropout=0.2, norm="batch_norm")
        self.pool = models.global_add_pool
        self.head = nn.Linear(8, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pooled = self.pool(self.net(batch.x, batch.edge_index), batch.batch)
        loss = nn.functional.cross_entropy(self.head(pooled), batch.y)
        self.log("loss", loss, batch_size=batch.num_graphs)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.005)


class Gat(pl.LightningModule):
    """Classifies the nodes of one graph, of which some are for training."""

    def __init__(self) -> None:
        super().__init__()
        models = pytest.importorskip("torch_geometric.nn", reason=REASON.format("torch-geometric"))
        self.net = models.GAT(4, 8, 2, out_channels=3, heads=2, dropout=0.3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch.x, batch.edge_index)
        return nn.functional.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.005, weight_decay=5e-4)


def graph(given: torch.Generator, nodes: int, labels: int) -> Any:
    data = pytest.importorskip("torch_geometric.data", reason=REASON.format("torch-geometric"))
    return data.Data(
        x=torch.randn(nodes, 4, generator=given),
        edge_index=torch.randint(0, nodes, (2, 3 * nodes), generator=given),
        y=torch.randint(0, 3 if labels > 1 else 2, (labels,), generator=given),
    )


class TestGin(Member):
    make = Gin

    @staticmethod
    def batches() -> Any:
        data = pytest.importorskip("torch_geometric.data", reason=REASON.format("torch-geometric"))
        given = numbers()
        return [data.Batch.from_data_list([graph(given, 5 + i, 1) for i in range(4)]) for _ in range(4)]


class TestGat(Member):
    make = Gat

    @staticmethod
    def batches() -> Any:
        whole = graph(numbers(), 20, 20)
        whole.train_mask = torch.arange(20) < 12
        return [whole] * 4


class TestChemprop(Member):
    """Its learning rate follows the number of steps, and its loss is a metric."""

    double: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    @staticmethod
    def make() -> pl.LightningModule:
        pytest.importorskip("chemprop", reason=REASON.format("chemprop"))
        from chemprop import models, nn

        return models.MPNN(
            nn.BondMessagePassing(d_h=12, depth=2, dropout=0.1),
            nn.MeanAggregation(),
            nn.RegressionFFN(input_dim=12, hidden_dim=12),
            batch_norm=True,
            warmup_epochs=1,
            init_lr=1e-3,
            max_lr=1e-2,
        )

    @staticmethod
    def batches() -> Any:
        pytest.importorskip("chemprop", reason=REASON.format("chemprop"))
        import numpy as np
        from chemprop import data

        smiles = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "CCCl", "C1CCCCC1", "CC#N", "COC"] * 2
        points = [data.MoleculeDatapoint.from_smi(text, np.array([len(text) / 10])) for text in smiles]
        return list(data.build_dataloader(data.MoleculeDataset(points), batch_size=4, shuffle=False))
