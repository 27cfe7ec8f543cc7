"""Under DDP the monitors measure with the running statistics of rank zero, which a checkpoint file holds."""

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from support.fits import fit
from support.nets import Plain, build, float64, loader
from support.ranks import Ranks
from support.sharpness import TOP
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from lightning_same import CheckpointEffectMonitor, SharpnessMonitor, top_eigenvalue


class Normed(Plain):
    """Each rank's running statistics are those of its own samples, which differ in scale."""

    def __init__(self, own_buffer: bool = False) -> None:
        super().__init__()
        self.layers.insert(1, nn.BatchNorm1d(10))
        if own_buffer and distributed.get_rank() == 1:
            self.register_buffer("queue", torch.zeros(3))

    def losses(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.training:
            batch = [batch[0] * (1 + distributed.get_rank()), batch[1]]
        return self.losses(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def val_dataloader(self) -> Any:
        return loader(16, 16, self.dtype)


class Saved(Callback):
    """The weights and buffers of this rank when the monitor measures, and at the end of that step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            self.before = {name: value.clone() for name, value in module.state_dict().items()}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            self.metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}


def measured(own_buffer: bool = False) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor], list[str]]:
    probe = list(loader(48, 24, torch.float64))
    saved = Saved()
    monitors = [
        SharpnessMonitor(every_n_steps=4, probe_batches=probe, tolerance=1e-8, max_products=113),
        CheckpointEffectMonitor(every_n_steps=4, noisy_mask=lambda batch: batch[1] == 0),
    ]
    strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
    with float64(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module = build(Normed, own_buffer)
        fit(module, callbacks=[saved, *monitors], devices=2, strategy=strategy, max_epochs=1, max_steps=6)
    told = [str(warning.message) for warning in seen if "buffers of other names" in str(warning.message)]
    return saved.metrics, saved.before, dict(module.state_dict()), told


def without_monitors() -> dict[str, Tensor]:
    strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
    with float64():
        module = build(Normed)
        fit(module, devices=2, strategy=strategy, max_epochs=1, max_steps=6)
    return dict(module.state_dict())


def test_the_statistics_are_rank_zeros(ranks: dict[int, Ranks]) -> None:
    (first, saved, after, _), (second, other, other_after, _) = ranks[2].run(measured)
    assert first == second
    variances = [state["layers.1.running_var"] for state in (saved, other)]
    assert (variances[1] > variances[0]).all()
    with float64():
        module = Plain()
        module.layers.insert(1, nn.BatchNorm1d(10))
        module.load_state_dict(saved)
        module.eval()
        batches = list(loader(48, 48, torch.float64))

        def top() -> float:
            loss = lambda batch: cross_entropy(module(batch[0]), batch[1])  # noqa: E731
            return top_eigenvalue(loss, module, batches, tolerance=1e-8, max_products=113).value

        assert first[TOP] == pytest.approx(top(), rel=1e-6)
        gradient = validation_gradient(module)
        module.load_state_dict(other)
        module.eval()
        assert first[TOP] != pytest.approx(top(), rel=1e-3)
    # <s, g_validation> / |s| of the whole is at most |g_validation|, and with other statistics it is another number.
    assert abs(first["ckpt_effect/whole/validation"]) <= gradient.norm().item()
    for state, plain in zip((after, other_after), ranks[2].run(without_monitors), strict=True):
        assert all(torch.equal(state[name], plain[name]) for name in plain)


def validation_gradient(module: nn.Module) -> Tensor:
    ((x, y),) = loader(16, 16, torch.float64)
    grads = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def own_buffer() -> Any:
    return measured(own_buffer=True)


def test_other_buffers_on_another_rank_are_told(ranks: dict[int, Ranks]) -> None:
    (first, *_, told), (second, *_) = ranks[2].run(own_buffer, patience=120)
    assert told
    assert first == second
