"""Draw the pictures of docs/diagnostics.md: plain SGD on digits, 40% of whose labels are wrong, watched as it trains.

python docs/diagnostics.py
"""

import shutil
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_same import CheckpointFractionMonitor, GradientNormMonitor, SharpnessMonitor
from lightning_same.cli.plot import main as plot
from lightning_same.experiments import Batch, DigitsData, ImageClassifier, SmallCNN


def is_noisy(batch: Batch) -> torch.Tensor:
    return batch.label != batch.true_label


def main(target: Path, max_epochs: int = 40) -> None:
    pl.seed_everything(0)
    monitors = [
        CheckpointFractionMonitor(every_n_steps=5, rho=0.2, noisy_mask=is_noisy, per_layer=True),
        GradientNormMonitor(every_n_steps=5, rho=0.2, noisy_mask=is_noisy, per_layer=True),
        SharpnessMonitor(every_n_steps=20, rho=0.2, gradient_curvature=True, adaptive=True, worst_case=0.1),
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            logger=CSVLogger(folder),
            callbacks=monitors,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        data = DigitsData(noise_rate=0.4, val_fraction=0.2, batch_size=64, augment=False)
        trainer.fit(ImageClassifier(SmallCNN(10, width=16), num_classes=10), data)
        plot([folder, "--labels", "SGD, 40% wrong labels"])
        for name in ("fractions", "shares", "norms", "layers", "sharpness"):
            shutil.copy(Path(folder) / f"{name}.png", target / f"diagnostics_{name}.png")


if __name__ == "__main__":
    main(Path(__file__).parent)
