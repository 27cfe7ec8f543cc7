"""The weights come back from w + e, whatever happens in pass two."""

import copy
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import differences, fit, weights
from support.nets import Plain, build
from support.passes import FORCED, EverythingSAM, count_passes
from torch import Tensor

from lightning_same import SAM, Rule, with_sam
from lightning_same.rules.perturbations import Ascent, Normalized


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_in_pass_two_leaves_the_weights_at_w(error: type[BaseException], where: str, tmp_path: Path) -> None:
    class Fails(EverythingSAM):
        sam = SAM(0.3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.sam_pass == 1:
                before.append(weights(self))
            out = super().training_step(batch, batch_idx)
            if self.sam_pass == 2 and batch_idx == 2:
                if where == "forward":
                    raise error("in pass two")
                out["loss"].register_hook(fail)
            return out

    def fail(_: Tensor) -> None:
        raise error("in pass two")

    class Save(Callback):
        def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / "exception.ckpt")

    before: list[list[Tensor]] = []
    module = build(Fails)
    with pytest.raises((error, SystemExit)):
        fit(module, callbacks=[Save()], limit_val_batches=0)
    assert differences(weights(module), before[-1]) == []
    assert module.steps_seen == 3
    saved = torch.load(tmp_path / "exception.ckpt", weights_only=False)["state_dict"]
    assert differences([saved[name] for name, _ in module.named_parameters()], before[-1]) == []
    assert module.sam_pass == 0
    fit(module, max_epochs=0)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_in_pass_two_leaves_all_as_pass_one_has_left_it(where: str) -> None:
    """Buffers of BatchNorm and of the module's own, attributes, metrics, and every kind of random number."""

    class Fails(EverythingSAM):
        sam = SAM(0.3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = super().training_step(batch, batch_idx)
            if batch_idx == 2 and self.sam_pass == 1:
                left.append(state(self))
            if batch_idx == 2 and self.sam_pass == 2:
                assert differences(state(self)["buffers"], left[0]["buffers"]) != []
                torch.rand(1), random.random(), np.random.rand()
                if where == "forward":
                    raise ValueError("in pass two")
                out["loss"].register_hook(fail)
            return out

    def fail(_: Tensor) -> None:
        raise ValueError("in pass two")

    def state(module: Any) -> dict[str, Any]:
        return {
            "buffers": {name: value.clone() for name, value in module.named_buffers()},
            "attributes": [module.steps_seen, [*module.history], copy.deepcopy(module.nested)],
            "generator": module.generator.get_state(),
            "random": [torch.get_rng_state(), random.getstate(), [*np.random.get_state()]],
            "metrics": module.losses.update_count,
        }

    class See(Callback):
        def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
            left.append(state(pl_module))

    left: list[dict[str, Any]] = []
    with pytest.raises(ValueError, match="in pass two"):
        fit(build(Fails), callbacks=[See()], limit_val_batches=0)
    assert differences(left[0], left[1]) == []


def test_validation_sees_the_unperturbed_weights() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.last = weights(pl_module)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if hasattr(self, "last"):
                assert differences(weights(pl_module), self.last) == []

    module = build(EverythingSAM)
    module.sam = SAM(0.5)
    fit(module, callbacks=[Watch()], val_check_interval=2)


@pytest.mark.parametrize("rule", [FORCED, SAM(0.3)], ids=repr)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_of_none_skips_as_lightning_does(rule: Rule, accumulate: int) -> None:
    class Skips(Plain):
        skip: frozenset[int] = frozenset({1, 5})

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in self.skip else super().training_step(batch, batch_idx)

    plain, sam = build(Skips), with_sam(build(Skips), rule)
    made = fit(plain, accumulate_grad_batches=accumulate), fit(sam, accumulate_grad_batches=accumulate)
    assert made[0].global_step == made[1].global_step
    assert (differences(weights(plain), weights(sam)) == []) == (rule is FORCED)

    if rule is FORCED:
        return
    # In the window of batches 3, 4 and the skipped 5, pass two still happens, on what the others gathered.
    passes = count_passes(sam)
    fit(sam, accumulate_grad_batches=3, max_epochs=1)
    assert passes == [1, 1, 2, 2, 1, 1, 2, 2]


def test_each_replay_begins_where_its_micro_batch_began_whatever_the_one_before_does() -> None:
    seen: dict[int, list[tuple[int, float]]] = {1: [], 2: []}

    class Moves(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen[self.sam_pass].append((batch_idx, self.table.sum().item()))
            if batch_idx % 2 == 0:
                self.table.data = self.table + (1 if self.sam_pass == 1 else 100)
            else:
                self.table.mul_(2)
            return super().training_step(batch, batch_idx)

    fit(with_sam(build(Moves), SAM(0.1)), accumulate_grad_batches=2, max_epochs=1)
    assert seen[1] == seen[2]
    assert len({value for _, value in seen[1]}) > 2


def test_the_pass_is_two_from_before_the_weights_move() -> None:
    passes: list[int] = []

    class Looks(Normalized):
        def direction(self, params: Any, grads: Any, memory: Any) -> Ascent:
            passes.append(module.sam_pass)
            return super().direction(params, grads, memory)

    module = with_sam(build(Plain), Rule(0.1, perturbation=Looks()))
    fit(module, max_epochs=1)
    assert set(passes) == {2}
    assert module.sam_pass == 0
