"""Self-supervised training as `lightly` publishes it: momentum encoders, queues, prototypes and groups."""

import copy
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from zoo.data import views
from zoo.member import Distributed, Member

pytest.importorskip("lightly", reason="needs lightly: pip install 'lightning-same[zoo]'")

from lightly.loss import DINOLoss, NTXentLoss, SwaVLoss
from lightly.models.modules import heads, memory_bank
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from sklearn.cluster import KMeans

WIDTH = 8
"""Of the features."""


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, stride=2, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def frozen_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module)
    deactivate_requires_grad(copied)
    return copied


class MoCo(pl.LightningModule):
    """A momentum encoder, whose outputs wait in a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = heads.MoCoProjectionHead(WIDTH, WIDTH, 6)
        self.backbone_momentum = frozen_copy(self.backbone)
        self.head_momentum = frozen_copy(self.head)
        self.criterion = NTXentLoss(memory_bank_size=(16, 6))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        momentum = cosine_schedule(self.current_epoch, 4, 0.9, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.head, self.head_momentum, m=momentum)
        query, key = batch
        with torch.no_grad():
            keys = self.head_momentum(self.backbone_momentum(key))
        loss = self.criterion(self.head(self.backbone(query)), keys)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


class SwaV(pl.LightningModule):
    """Prototypes that the training step normalizes, frozen in the first epoch; queues that count from the second on."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = heads.SwaVProjectionHead(WIDTH, WIDTH, 6)
        self.prototypes = heads.SwaVPrototypes(6, 5, n_steps_frozen_prototypes=1)
        self.queues = nn.ModuleList([memory_bank.MemoryBankModule(size=(12, 6)) for _ in range(2)])
        self.criterion = SwaVLoss()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.prototypes.normalize()
        features = [nn.functional.normalize(self.head(self.backbone(view)), dim=1) for view in batch]
        scores = [self.prototypes(part, self.current_epoch) for part in features]
        loss = self.criterion(scores[:2], scores[2:], self.queued(features[:2]))
        self.log("loss", loss, on_epoch=True)
        return loss

    @torch.no_grad()
    def queued(self, features: list[Tensor]) -> list[Tensor] | None:
        rows = [queue(part, update=True)[1].t() for queue, part in zip(self.queues, features, strict=True)]
        if self.current_epoch < 1:
            return None
        return [self.prototypes(part, self.current_epoch) for part in rows]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.001)


class Dino(pl.LightningModule):
    """A teacher whose outputs are centered, and a last layer whose gradients are cancelled in the first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.student = backbone()
        self.head = heads.DINOProjectionHead(WIDTH, WIDTH, 6, 10, freeze_last_layer=1)
        self.teacher = frozen_copy(self.student)
        self.teacher_head = heads.DINOProjectionHead(WIDTH, WIDTH, 6, 10)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=10, warmup_teacher_temp_epochs=2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        momentum = cosine_schedule(self.current_epoch, 4, 0.9, 1)
        update_momentum(self.student, self.teacher, m=momentum)
        update_momentum(self.head, self.teacher_head, m=momentum)
        with torch.no_grad():
            wanted = [self.teacher_head(self.teacher(view)) for view in batch[:2]]
        given = [self.head(self.student(view)) for view in batch]
        loss = self.criterion(wanted, given, epoch=self.current_epoch)
        self.log("loss", loss)
        return loss

    def on_after_backward(self) -> None:
        self.head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.001)


class Smog(pl.LightningModule):
    """Groups that follow the features; now and then k-means finds them anew, and the momentum encoder is made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = heads.SMoGProjectionHead(WIDTH, WIDTH, 6)
        self.predictor = heads.SMoGPredictionHead(6, WIDTH, 6)
        self.start_anew()
        self.bank = memory_bank.MemoryBankModule(size=(16, 6))
        groups = nn.functional.normalize(torch.rand(5, 6), dim=1)
        self.smog = heads.SMoGPrototypes(group_features=groups, beta=0.9)

    def start_anew(self) -> None:
        self.backbone_momentum = frozen_copy(self.backbone)
        self.head_momentum = frozen_copy(self.head)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_step > 0 and self.global_step % 3 == 0:
            found = torch.from_numpy(KMeans(5, n_init=1).fit(self.bank.bank.numpy()).cluster_centers_)
            self.smog.set_group_features(nn.functional.normalize(found.to(self.bank.bank), dim=1))
            self.start_anew()
        else:
            update_momentum(self.backbone, self.backbone_momentum, 0.9)
            update_momentum(self.head, self.head_momentum, 0.9)
        one, two = batch if batch_idx % 2 else reversed(batch)
        encoded = self.head(self.backbone(one))
        assigned = self.smog.assign_groups(self.head_momentum(self.backbone_momentum(two)))
        groups = self.smog.get_updated_group_features(encoded.detach())
        logits = self.smog(self.predictor(encoded), groups, temperature=0.1)
        self.smog.set_group_features(groups)
        self.bank(encoded, update=True)
        return nn.functional.cross_entropy(logits, assigned)

    def configure_optimizers(self) -> Any:
        params = [*self.backbone.parameters(), *self.head.parameters(), *self.predictor.parameters()]
        return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-6)


class TestMoCo(Distributed):
    make = MoCo
    resumes: ClassVar[bool] = False  # The queue is in no checkpoint file.

    @staticmethod
    def batches() -> Any:
        return views(2)


class TestSwaV(Member):
    make = SwaV
    resumes: ClassVar[bool] = False

    @staticmethod
    def batches() -> Any:
        return views(4)


class TestDino(Distributed):
    make = Dino
    copies: ClassVar[bool] = False  # For the hook of torch.nn.utils.weight_norm.

    @staticmethod
    def batches() -> Any:
        return views(4)


class TestSmog(Member):
    make = Smog
    resumes: ClassVar[bool] = False

    @staticmethod
    def batches() -> Any:
        return views(2)
