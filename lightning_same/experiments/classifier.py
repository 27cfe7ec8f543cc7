"""A plain LightningModule for images with noisy labels."""

from collections.abc import Sequence

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import Metric
from typing_extensions import override

from lightning_same.experiments.images import Batch
from lightning_same.rules.settings import check_int, check_number


class Scores(Metric):
    """Loss and accuracy over the samples of an epoch, and the accuracy over those of true and of wrong label.

    One metric for all of them: what is updated at each step is copied and put back by each second pass.
    """

    counts: Tensor
    """Samples of true label; those hit; samples of wrong label; those whose label is hit; whose true label is hit."""

    loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")

    @override
    def update(self, losses: Tensor, predicted: Tensor, batch: Batch) -> None:
        """Add a batch of n samples; ``losses`` and ``predicted`` classes are of shape (n,)."""
        noisy, hit = batch.noisy, predicted == batch.label
        masks = [~noisy, hit & ~noisy, noisy, hit & noisy, (predicted == batch.true_label) & noisy]
        # Not in place: what was reset in inference mode may be updated outside of it.
        self.counts = self.counts + torch.stack(masks).sum(1)
        self.loss = self.loss + losses.sum()

    @override
    def compute(self) -> dict[str, Tensor]:
        """The scores by name, scalars; NaN where there was no sample."""
        clean, clean_hits, noisy, noisy_hits, corrected = self.counts.unbind()
        return {
            "loss": self.loss / (clean + noisy),
            "accuracy": (clean_hits + noisy_hits) / (clean + noisy),
            "clean_accuracy": clean_hits / clean,
            "noisy_accuracy": noisy_hits / noisy,
            "noisy_true_accuracy": corrected / noisy,
        }


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
        num_classes: number of classes, at least 2: as many as the data have and the model gives.
        lr: learning rate at the start, >= 0; falls to 0 along a half cosine over ``trainer.max_epochs``, once per
            epoch.
        momentum: momentum of SGD, from 0 to below 1.
        weight_decay: L2 weight decay of SGD, on every parameter; >= 0.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.num_classes = check_int(self, "num_classes", num_classes, at_least=2)
        self.lr = check_number(self, "lr", lr, at_least=0)
        self.momentum = check_number(self, "momentum", momentum, at_least=0, below=1)
        self.weight_decay = check_number(self, "weight_decay", weight_decay, at_least=0)
        self.train_scores, self.train_eval_scores, self.val_scores, self.test_scores = (Scores() for _ in range(4))

    @override
    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, channels, height, width)."""
        logits: Tensor = self.model(image)
        return logits

    @override
    def setup(self, stage: str) -> None:
        """Refuse data of another number of classes.

        Raises:
            ValueError: names both numbers.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.check_classes(data)

    def check_classes(self, data: LightningDataModule) -> None:
        """Refuse data of another number of classes, where they say their ``num_classes``.

        Raises:
            ValueError: names both numbers.
        """
        classes = getattr(data, "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"{type(self).__name__}: `num_classes` must be {classes}, as {type(data).__name__} has, got"
                f" {self.num_classes}."
            )

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each sample on the labels given, of shape (n,).

        Raises:
            ValueError: if the model gives another number of logits than there are classes.
        """
        return F.cross_entropy(self._logits(batch), batch.label, reduction="none")

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self(batch.image)
        if logits.shape != (len(batch.image), self.num_classes):
            raise ValueError(
                f"{type(self).__name__}: {type(self.model).__name__} must give logits of shape"
                f" {(len(batch.image), self.num_classes)}, got {tuple(logits.shape)}. Its own `num_classes` must be"
                f" {self.num_classes}, too."
            )
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss on the labels given."""
        return self._score(self.train_scores, batch).mean()

    @override
    def on_train_epoch_end(self) -> None:
        """Log the scores of the steps."""
        self._log("train", ("loss", "accuracy", "clean_accuracy", "noisy_accuracy"), ("loss", "accuracy"))

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the validation data (loader 0) and the training data (loader 1)."""
        self._score(self.train_eval_scores if dataloader_idx else self.val_scores, batch)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation data, and of the training data if they were evaluated."""
        self._log("val", ("loss", "accuracy"), ("accuracy",))
        if self.train_eval_scores.update_called:
            self._log("train_eval", ("loss", "accuracy", "clean_accuracy", "noisy_accuracy", "noisy_true_accuracy"), ())

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the test data."""
        self._score(self.test_scores, batch)

    @override
    def on_test_epoch_end(self) -> None:
        """Log the scores of the test data."""
        self._log("test", ("loss", "accuracy"), ("accuracy",))

    def _score(self, scores: Scores, batch: Batch) -> Tensor:
        logits = self._logits(batch)
        losses = F.cross_entropy(logits, batch.label, reduction="none")
        scores.update(losses.detach(), logits.argmax(1), batch)
        return losses

    def _log(self, split: str, names: Sequence[str], shown: Sequence[str]) -> None:
        metric: Scores = getattr(self, f"{split}_scores")
        scores = metric.compute()  # over all ranks, so that they agree on whether to log one
        metric.reset()
        for name in names:
            if name == "loss" or not scores[name].isnan():  # a loss may be NaN by itself
                self.log(f"{split}/{name}", scores[name], prog_bar=name in shown, sync_dist=True)

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
