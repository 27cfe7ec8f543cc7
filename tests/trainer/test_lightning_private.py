"""Lightning's private parts: which are used, in which versions they were seen, and that only ``trainer/`` uses them."""

import ast
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

import lightning_same

PACKAGE = Path(lightning_same.__file__).parent
SEEN = "2.5.1 to 2.6.6"

PRIVATE: dict[str, tuple[str, Callable[[pl.Trainer], object]]] = {
    "_should_accumulate": (SEEN, lambda trainer: trainer.fit_loop._should_accumulate()),
    "_batches_that_stepped": (SEEN, lambda trainer: trainer.fit_loop.epoch_loop._batches_that_stepped),
    "_skip_backward": (SEEN, lambda trainer: trainer.fit_loop._skip_backward),
    "_logger_connector": (SEEN, lambda trainer: trainer._logger_connector.should_update_logs),
    "_callback_metrics": (SEEN, lambda trainer: trainer._logger_connector._callback_metrics),
    "_logged_metrics": (SEEN, lambda trainer: trainer._logger_connector._logged_metrics),
    "_progress_bar_metrics": (SEEN, lambda trainer: trainer._logger_connector._progress_bar_metrics),
    "_current_fx": (SEEN, lambda trainer: trainer._logger_connector._current_fx),
    "_current_fx_name": (SEEN, lambda trainer: trainer.lightning_module._current_fx_name),
    "_results": (SEEN, lambda trainer: trainer.fit_loop.epoch_loop._results),
    "_check_on_train_epoch_end": (SEEN, lambda trainer: EarlyStopping("loss")._check_on_train_epoch_end),
    "_every_n_train_steps": (SEEN, lambda trainer: ModelCheckpoint()._every_n_train_steps),
    "_every_n_epochs": (SEEN, lambda trainer: ModelCheckpoint()._every_n_epochs),
    "_should_save_on_train_epoch_end": (
        SEEN,
        lambda trainer: ModelCheckpoint()._should_save_on_train_epoch_end(trainer),
    ),
    "_on_before_batch_transfer": (SEEN, lambda trainer: trainer.lightning_module._on_before_batch_transfer(0)),
}
"""By name: the versions of Lightning in which it was seen, and how it is used."""

OF_OTHERS = {
    "torch": {
        "_modules",
        "_parameters",
        "_buffers",
        "_pytree",
        "_post_accumulate_grad_hooks",
        "_forward_cls",
        "_version",
    },
    "torchmetrics": {"_defaults"},
    "collections.namedtuple": {"_make", "_asdict"},
}
"""Private by their underscore, and not Lightning's."""


def private_names(path: Path) -> set[str]:
    """Attributes with a leading underscore that a file reads from anything but ``self``."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith(("__", "_foreach_"))
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def of_lightning(path: Path) -> set[str]:
    """Those that Lightning's own classes have."""
    return {
        name
        for name in private_names(path) - set().union(*OF_OTHERS.values())
        if name in PRIVATE or name == "_get" or hasattr(pl.LightningModule, name) or hasattr(pl.Trainer, name)
    }


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightnings_private_names_stand_in_one_room(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    allowed = {"trainer": set(PRIVATE), "cli": {"_get"}}.get(room, set())
    assert of_lightning(path) <= allowed


def test_every_private_name_that_is_listed_is_used() -> None:
    used = set().union(*(private_names(path) for path in (PACKAGE / "trainer").glob("*.py")))
    assert set(PRIVATE) <= used
    assert hasattr(LightningCLI, "_get")


@pytest.mark.parametrize("name", PRIVATE)
def test_each_is_there_in_the_installed_lightning(name: str) -> None:
    seen: list[object] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
            seen.append(PRIVATE[name][1](trainer))

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=[Look()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    assert len(seen) == 1


def test_patches_are_taken_back() -> None:
    """The strategy's training step is its own again after a fit, and after one that failed."""

    class Fails(BoringModel):
        def training_step(self, batch: object, batch_idx: int) -> None:
            raise KeyError("of the user")

    for kind, error in ((BoringModel, None), (Fails, KeyError)):
        module = lightning_same.with_sam(kind(), lightning_same.SAM())
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if error is None:
            trainer.fit(module)
        else:
            with pytest.raises(error):
                trainer.fit(module)
        assert "training_step" not in vars(trainer.strategy)
        assert trainer.strategy.training_step.__func__ is type(trainer.strategy).training_step
