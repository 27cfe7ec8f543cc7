"""The classifier of the experiments, and the configurations that are shipped."""

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from support.paths import ROOT
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_same.experiments import Batch, DigitsData, ImageClassifier, SmallCNN

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **(quiet | options))


class Table(nn.Module):
    """Logits that are looked up: the 'image' holds the class to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    @override
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.one_hot(image[:, 0, 0, 0].long(), 3) * self.scale


def table_batches() -> DataLoader[Batch]:
    """Two batches of seven samples: four clean, of which three are hit, and three noisy, of which one is."""
    rows = [  # predicted, label, true label
        [(0, 0, 0), (1, 0, 0), (2, 1, 0), (1, 1, 0)],
        [(1, 1, 1), (2, 2, 2), (0, 2, 1)],
    ]
    batches = [
        Batch(torch.tensor(predicted).view(-1, 1, 1, 1).float(), torch.tensor(label), torch.tensor(true))
        for predicted, label, true in (zip(*batch, strict=True) for batch in rows)
    ]
    return DataLoader(cast(Dataset[Batch], batches), batch_size=None)


def test_training_accuracy_is_split_into_clean_and_noisy(tmp_path: Path) -> None:
    t = trainer(tmp_path, max_epochs=1)
    t.fit(ImageClassifier(Table(), num_classes=3, lr=0.0), table_batches())
    logged = {name: value.item() for name, value in t.callback_metrics.items()}
    assert logged["train/clean_accuracy"] == pytest.approx(3 / 4)
    assert logged["train/noisy_accuracy"] == pytest.approx(1 / 3)
    assert logged["train/accuracy"] == pytest.approx(4 / 7)


@pytest.mark.parametrize(("noise_rate", "logged"), [(0.0, {"clean"}), (0.5, {"clean", "noisy"}), (1.0, {"noisy"})])
def test_no_accuracy_is_logged_for_samples_that_are_not_there(
    noise_rate: float, logged: set[str], tmp_path: Path
) -> None:
    t = trainer(tmp_path, max_epochs=2)
    data = DigitsData(fake=True)
    data.noise_rate = noise_rate  # 1 is no option of a study
    t.fit(ImageClassifier(SmallCNN(10, width=2), num_classes=10), data)
    split = {name for name in t.callback_metrics if name.endswith("_accuracy")}
    assert split == {f"train/{name}_accuracy" for name in logged}


def test_a_loss_that_is_none_is_logged_as_such(tmp_path: Path) -> None:
    """An accuracy that is none says that there was no sample; such a loss says that the training has diverged."""
    model = Table()
    model.scale.data.fill_(torch.nan)
    t = trainer(tmp_path, max_epochs=1)
    t.fit(ImageClassifier(model, num_classes=3), table_batches())
    assert t.callback_metrics["train/loss"].isnan()


def test_training_data_are_evaluated_at_the_weights_that_the_epoch_ends_with(tmp_path: Path) -> None:
    """Against a loop of its own over the training set, after augmented training with BatchNorm."""
    data = DigitsData(train_eval=True, noise_rate=0.3, batch_size=100, augment=True)
    model = ImageClassifier(SmallCNN(10, width=4), num_classes=10, lr=0.05)
    t = trainer(tmp_path, max_epochs=2)
    t.fit(model, data)
    logged = {
        name: value.item() for name, value in t.callback_metrics.items() if name.startswith(("train_eval", "val"))
    }
    model.eval()
    with torch.no_grad():
        predicted, losses = [], []
        for image, label in zip(data.train_set.images.image, data.train_set.label, strict=True):
            logits = model((image[None] / 255 - 0.305) / 0.376)
            predicted.append(int(logits.argmax()))
            losses.append(float(nn.functional.cross_entropy(logits, label[None])))
    rows = list(zip(predicted, data.train_set.label.tolist(), data.train_set.images.label.tolist(), strict=True))
    clean = [p == label for p, label, true in rows if label == true]
    memorised = [p == label for p, label, true in rows if label != true]
    corrected = [p == true for p, label, true in rows if label != true]
    assert logged["train_eval/accuracy"] == pytest.approx(sum(clean + memorised) / len(rows))
    assert logged["train_eval/clean_accuracy"] == pytest.approx(sum(clean) / len(clean))
    assert logged["train_eval/noisy_accuracy"] == pytest.approx(sum(memorised) / len(memorised))
    assert logged["train_eval/noisy_true_accuracy"] == pytest.approx(sum(corrected) / len(corrected))
    assert logged["train_eval/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert set(logged) == {f"train_eval/{name}" for name in ("accuracy", "clean_accuracy", "noisy_accuracy")} | {
        "train_eval/noisy_true_accuracy",
        "train_eval/loss",
        "val/accuracy",
        "val/loss",
    }


def test_the_counts_start_anew_each_epoch(tmp_path: Path) -> None:
    class Record(pl.Callback):
        @override
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, ImageClassifier)
            counts.append(pl_module.train_scores.counts.tolist())

    counts: list[list[int]] = []
    t = trainer(tmp_path, max_epochs=3, callbacks=[Record()])
    t.fit(ImageClassifier(Table(), num_classes=3), table_batches())
    assert counts == [[4, 3, 3, 1, 0]] * 3


def test_digits_are_learnt(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    data, model = DigitsData(batch_size=32), ImageClassifier(SmallCNN(10, width=16), num_classes=10)
    t = trainer(tmp_path, max_epochs=1)
    (before,) = t.validate(model, data, verbose=False)
    t.fit(model, data)
    (after,) = t.validate(model, data, verbose=False)
    (test,) = t.test(model, data, verbose=False)
    assert set(test) == {"test/loss", "test/accuracy"}
    assert after["val/accuracy"] > before["val/accuracy"] + 0.3
    assert after["val/loss"] < before["val/loss"]
    assert test["test/accuracy"] > 0.4


def test_learning_rate_falls_along_a_cosine(tmp_path: Path) -> None:
    class Rates(pl.Callback):
        @override
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates: list[float] = []
    t = trainer(tmp_path, max_epochs=4, limit_train_batches=1, callbacks=[Rates()])
    t.fit(ImageClassifier(Table(), num_classes=3, lr=0.2), table_batches())
    expected = 0.1 * (1 + torch.cos(torch.arange(4) * torch.pi / 4))
    torch.testing.assert_close(torch.tensor(rates), expected)
    (group,) = t.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)


def test_the_cosine_needs_a_number_of_epochs(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"needs `Trainer\(max_epochs=...\)` of at least 1, got -1"):
        trainer(tmp_path, max_steps=2).fit(ImageClassifier(Table(), num_classes=3), table_batches())


def test_a_checkpoint_file_is_loaded_with_the_model_given(tmp_path: Path) -> None:
    t = trainer(tmp_path, max_epochs=1)
    model = ImageClassifier(SmallCNN(10, width=2), num_classes=10, lr=0.03)
    t.fit(model, DigitsData(fake=True))
    t.save_checkpoint(tmp_path / "file.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "file.ckpt", model=SmallCNN(10, width=2))
    assert dict(loaded.hparams) == {"num_classes": 10, "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4}
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_configuration_trains_a_step_on_fake_data(path: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert set(config) == {"seed_everything", "trainer", "model", "data", "sam", "test_after_fit"}
    config["data"]["init_args"] |= {"fake": True, "batch_size": 4, "num_workers": 0}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=pl.LightningModule)
    parser.add_argument("--data", type=pl.LightningDataModule)
    parts = parser.instantiate(parser.parse_object({name: config[name] for name in ("model", "data")}))
    assert parts.data.num_classes == parts.model.hparams.num_classes
    t = trainer(tmp_path, max_epochs=config["trainer"]["max_epochs"], max_steps=1, limit_val_batches=1)
    t.fit(parts.model, parts.data)
    assert t.global_step == 1


def test_three_configurations_are_shipped() -> None:
    assert [path.stem for path in CONFIGS] == ["cifar100_resnet18", "digits", "fashion_mnist"]
