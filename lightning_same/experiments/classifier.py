"""A plain LightningModule for images with noisy labels."""

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_same.experiments.images import Batch


class MaskedAccuracy(Metric):
    """Accuracy over the samples under a mask; NaN where there was none.

    torchmetrics' ``MeanMetric`` either looks for NaN at each update, for which the host waits for the device, or
    ignores its weights.
    """

    hits: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, hit: Tensor, mask: Tensor) -> None:
        """Count a batch; ``hit`` and ``mask`` are booleans of shape (n,)."""
        self.hits += (hit & mask).sum()
        self.count += mask.sum()

    @override
    def compute(self) -> Tensor:
        """Hits over samples, a scalar."""
        return self.hits / self.count


class ImageClassifier(LightningModule):
    """Cross-entropy, SGD and a cosine learning rate, with the training accuracy split into clean and noisy samples.

    Logs, all once per epoch:
        - ``train/loss``, ``train/accuracy``: against the labels given, in training mode, while the weights move.
        - ``train/clean_accuracy``, ``train/noisy_accuracy``: the same accuracy over the samples whose label is true and
          over those whose label is wrong. The second is the share of the noise that has been fitted. Neither is logged
          for an epoch that had no such sample.
        - ``val/loss``, ``val/accuracy``, ``test/loss``, ``test/accuracy``: on clean labels.
        - ``train_eval/loss``, ``train_eval/accuracy``, ``train_eval/clean_accuracy``, ``train_eval/noisy_accuracy``:
          what ``train/...`` says, but in evaluation mode at the weights that the epoch ends with and without
          augmentation, if the data has a second validation loader for it (``train_eval=True``). So they mean the same
          for every method, however many passes it takes. ``noisy_accuracy`` is the memorised share of the wrong labels;
          ``train_eval/noisy_true_accuracy`` is the share of the same samples whose true label is predicted.

    Args:
        model: gives logits (n, num_classes) for images (n, channels, height, width).
        num_classes: number of classes.
        lr: learning rate at the start; falls to 0 along a half cosine over ``trainer.max_epochs``, once per epoch.
        momentum: momentum of SGD.
        weight_decay: L2 weight decay of SGD, on every parameter.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        # Checking the arguments would make the host wait for the device at each step.
        accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.train_accuracy, self.val_accuracy, self.test_accuracy = accuracy, accuracy.clone(), accuracy.clone()
        self.clean_accuracy, self.noisy_accuracy = MaskedAccuracy(), MaskedAccuracy()
        self.train_eval_accuracy = accuracy.clone()
        self.train_eval_clean, self.train_eval_noisy = MaskedAccuracy(), MaskedAccuracy()
        self.train_eval_noisy_true = MaskedAccuracy()

    @override
    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, channels, height, width)."""
        logits: Tensor = self.model(image)
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss on the labels given."""
        logits = self(batch.image)
        loss = F.cross_entropy(logits, batch.label)
        hit = logits.argmax(1) == batch.label
        self.train_accuracy.update(logits, batch.label)
        self.clean_accuracy.update(hit, ~batch.noisy)
        self.noisy_accuracy.update(hit, batch.noisy)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    @override
    def on_train_epoch_end(self) -> None:
        """Log the two halves of the training accuracy, where there are any."""
        self._log_parts({"train/clean_accuracy": self.clean_accuracy, "train/noisy_accuracy": self.noisy_accuracy})

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and accuracy, of the validation data (loader 0) and of the training data (loader 1)."""
        if dataloader_idx == 0:
            self._evaluate("val", batch, self.val_accuracy)
            return
        predicted = self._evaluate("train_eval", batch, self.train_eval_accuracy).argmax(1)
        self.train_eval_clean.update(predicted == batch.label, ~batch.noisy)
        self.train_eval_noisy.update(predicted == batch.label, batch.noisy)
        self.train_eval_noisy_true.update(predicted == batch.true_label, batch.noisy)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log the parts of the training accuracy that were evaluated."""
        if self.train_eval_clean.update_called:
            self._log_parts(
                {
                    "train_eval/clean_accuracy": self.train_eval_clean,
                    "train_eval/noisy_accuracy": self.train_eval_noisy,
                    "train_eval/noisy_true_accuracy": self.train_eval_noisy_true,
                }
            )

    def _log_parts(self, parts: dict[str, MaskedAccuracy]) -> None:
        for name, metric in parts.items():
            accuracy = metric.compute()  # over all ranks, so that they agree on whether to log it
            metric.reset()
            if not accuracy.isnan():
                self.log(name, accuracy, sync_dist=True)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the test loss and accuracy."""
        self._evaluate("test", batch, self.test_accuracy)

    def _evaluate(self, split: str, batch: Batch, accuracy: Metric) -> Tensor:
        logits: Tensor = self(batch.image)
        accuracy.update(logits, batch.label)
        loss = F.cross_entropy(logits, batch.label)
        self.log(f"{split}/loss", loss, sync_dist=True, add_dataloader_idx=False)
        self.log(f"{split}/accuracy", accuracy, prog_bar=split != "train_eval", add_dataloader_idx=False)
        return logits

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD under a cosine over the epochs of the trainer.

        Raises:
            MisconfigurationException: if the trainer has no ``max_epochs``, which the cosine needs.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise MisconfigurationException(
                f"{type(self).__name__}: the cosine learning rate needs `Trainer(max_epochs=...)` of at least 1,"
                f" got {epochs!r}."
            )
        optimizer = SGD(self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": CosineAnnealingLR(optimizer, T_max=epochs)}}
