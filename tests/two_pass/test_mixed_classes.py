"""Classes of every shape with the mixin or by `with_sam`: bases, copies, pickles, checkpoint files."""

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback
from support.fits import differences, fit, weights
from support.nets import Plain, build
from support.passes import PlainSAM
from torch import Tensor, nn

from lightning_same import SAM, SAME, SAMMixin, with_sam


def test_orders_of_bases_give_the_same_weights() -> None:
    class First(SAMMixin, Plain):
        sam = SAM(0.3)

    class Last(Plain, SAMMixin):
        sam = SAM(0.3)

    class Alone(SAMMixin, pl.LightningModule):
        sam = SAM(0.3)
        forward = Plain.forward
        training_step = Plain.training_step
        configure_optimizers = Plain.configure_optimizers
        train_dataloader = Plain.train_dataloader

        def __init__(self) -> None:
            pl.LightningModule.__init__(self)
            self.layers = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
            self.save_hyperparameters({"lr": 0.1, "samples": 48, "batch_size": 8})

    class Base(SAMMixin):
        sam = SAM(0.3)

    class Inherited(Base, Plain):
        pass

    class Overrides(First):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx)

    class Hooks(First):
        """Overrides hooks without calling super."""

        def on_fit_start(self) -> None: ...
        def on_train_start(self) -> None: ...
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
        def on_before_backward(self, loss: Tensor) -> None: ...
        def on_after_backward(self) -> None: ...
        def on_before_optimizer_step(self, optimizer: Any) -> None: ...
        def configure_callbacks(self) -> list[Callback]:
            return []

        def setup(self, stage: str) -> None: ...
        def teardown(self, stage: str) -> None: ...

    class NoIndex(First):
        def training_step(self, batch: Any) -> Tensor:
            return Plain.training_step(self, batch, 0)

    kinds = [First, Last, Alone, Inherited, Overrides, Hooks, NoIndex]
    modules = [build(kind) for kind in kinds]
    modules += [with_sam(build(Plain), SAM(0.3)), build(with_sam(Plain, SAM(0.3))), with_sam(build(First), SAM(0.3))]
    expected = with_sam(build(Plain), None)
    fit(expected)
    for module in modules:
        fit(module)
        assert differences(weights(module), weights(modules[0])) == [], type(module)
        assert differences(weights(module), weights(expected)) != []


def test_two_fits_and_two_trainers() -> None:
    module = with_sam(build(Plain), SAM(0.3))
    made = fit(module)
    made.fit_loop.max_epochs = 3
    made.fit(module)
    fit(module)
    plain = build(Plain)
    made.fit_loop.epoch_progress.reset()
    made.fit(plain)
    assert "training_step" not in vars(made.strategy)
    assert plain.global_step > 0


def test_trained_modules_pickle_and_copy() -> None:
    for module in (build(PlainSAM), with_sam(build(Plain), SAM(0.2)), build(with_sam(Plain, SAM(0.2)))):
        module.sam = SAME(1, rho=0.1)
        fit(module, max_steps=2)
        for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(twin) is type(module)
            assert twin.sam == module.sam
            assert differences(dict(twin.state_dict()), dict(module.state_dict())) == []
            fit(twin, max_steps=1)
    by_class = pickle.loads(pickle.dumps(build(with_sam(Plain, SAM(0.7)))))
    assert by_class.sam == SAM(0.7)


def test_a_module_is_copied_in_the_middle_of_a_fit() -> None:
    """The copy takes the weights along and nothing of the fit: it trains as a new module with these weights does."""
    copies: list[bytes] = []

    class CopyEachStep(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            copies.append(pickle.dumps(copy.deepcopy(pl_module)))

    fit(with_sam(build(Plain), SAM(0.2)), callbacks=[CopyEachStep()], max_steps=2)
    assert len(copies) == 2
    for pickled in copies:
        twin, fresh = pickle.loads(pickled), with_sam(build(Plain), SAM(0.2))
        fresh.load_state_dict(twin.state_dict())
        assert fit(twin, max_steps=3).global_step == fit(fresh, max_steps=3).global_step == 3
        assert differences(weights(twin), weights(fresh)) == []


def test_checkpoint_files_and_hyper_parameters(tmp_path: Path) -> None:
    mixed = with_sam(build(Plain, lr=0.05), SAM(0.2))
    made = fit(mixed, max_steps=2)
    made.save_checkpoint(tmp_path / "mixed.ckpt")
    assert mixed.hparams == {"lr": 0.05, "samples": 48, "batch_size": 8}
    assert type(mixed).__name__ == "Plain"
    kinds: list[Any] = [Plain, PlainSAM, with_sam(Plain, SAM(0.2)), type(mixed)]
    for kind in kinds:
        loaded = kind.load_from_checkpoint(tmp_path / "mixed.ckpt")
        assert type(loaded) is kind
        assert loaded.hparams["lr"] == 0.05
        assert differences(weights(loaded), weights(mixed)) == []
    assert kinds[2].load_from_checkpoint(tmp_path / "mixed.ckpt").sam == SAM(0.2)
    plain = build(Plain)
    assert list(plain.state_dict()) == list(mixed.state_dict())


def test_a_subclass_of_a_mixed_class(tmp_path: Path) -> None:
    made = fit(build(Sub), max_steps=1)
    made.save_checkpoint(tmp_path / "sub.ckpt")
    module = build(Sub)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        Sub.load_from_checkpoint(tmp_path / "sub.ckpt"),
    ):
        assert type(twin) is Sub
        assert twin.extra.weight.shape == (1, 1)
    twice = with_sam(with_sam(Plain, SAM(0.2)), SAME(2))
    assert pickle.loads(pickle.dumps(build(twice))).sam == SAME(2)


class Sub(with_sam(Plain, SAM(0.2))):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = nn.Linear(1, 1)


def test_with_sam_wants_a_lightning_module() -> None:
    with pytest.raises(TypeError, match=r"with_sam needs a `lightning\.pytorch`"):
        with_sam(nn.Linear(1, 1), SAM())  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"Plain.sam must be a rule such as SAM\(\), or None"):
        with_sam(Plain(), SAM)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Plain.sam must be a rule"):
        with_sam(Plain, "SAM")  # type: ignore[call-overload]
