"""Networks for images: `timm` with its mixing, averages and schedules, and `segmentation_models_pytorch`."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from zoo.data import images, numbers
from zoo.member import Distributed, Member

REASON = "needs {0}: pip install 'lightning-same[zoo]'"


class Timm(pl.LightningModule):
    """Mixed images and labels, dropped paths, an average of the weights, a schedule of `timm`'s own."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        timm = pytest.importorskip("timm", reason=REASON.format("timm"))
        from timm.data import Mixup
        from timm.loss import SoftTargetCrossEntropy
        from timm.utils import ModelEmaV3

        self.net = timm.create_model(name, pretrained=False, num_classes=3, **options)
        self.average = ModelEmaV3(self.net, decay=0.9)
        self.mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
        self.criterion = SoftTargetCrossEntropy()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update(self.net, step=self.global_step)

    def configure_optimizers(self) -> Any:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import CosineLRScheduler

        optimizer = create_optimizer_v2(self.net, opt="lamb", lr=5e-3, weight_decay=0.02)
        scheduler = CosineLRScheduler(optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-3)
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step(self.current_epoch + 1)


class Mixed(Timm):
    """Mixes inside the step, by numpy's random numbers."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(self.mixup(*batch), batch_idx)


class Segmented(pl.LightningModule):
    """Keeps what a step finds in a list, until the epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        smp = pytest.importorskip("segmentation_models_pytorch", reason=REASON.format("segmentation-models-pytorch"))
        self.net = smp.Unet(
            "mobilenet_v2", encoder_weights=None, encoder_depth=3, decoder_channels=(16, 8, 8), classes=1
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.criterion = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
        self.stats = smp.metrics.get_stats
        self.iou = smp.metrics.iou_score
        self.outputs: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, mask = batch
        logits = self.net(x - self.mean)
        loss = self.criterion(logits, mask)
        found = self.stats((logits.sigmoid() > 0.5).long(), mask.long(), mode="binary")
        output = {"loss": loss, **dict(zip(("tp", "fp", "fn", "tn"), found, strict=True))}
        self.outputs.append(output)
        return output

    def on_train_epoch_end(self) -> None:
        counts = [torch.cat([output[name] for output in self.outputs]) for name in ("tp", "fp", "fn", "tn")]
        self.log("iou", self.iou(*counts, reduction="micro"))
        self.outputs.clear()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-4)


class TestTimmConvolutions(Distributed):
    @staticmethod
    def make() -> Any:
        return Mixed("test_efficientnet", drop_path_rate=0.2)

    @staticmethod
    def batches() -> Any:
        return images(size=32)


class TestTimmTransformer(Member):
    @staticmethod
    def make() -> Any:
        return Mixed("test_vit", img_size=32, drop_path_rate=0.2)

    @staticmethod
    def batches() -> Any:
        return images(size=32)


class TestUnet(Member):
    make = Segmented

    @staticmethod
    def batches() -> Any:
        given = numbers()
        return [
            (torch.randn(2, 3, 32, 32, generator=given), (torch.rand(2, 1, 32, 32, generator=given) > 0.5).float())
            for _ in range(4)
        ]
