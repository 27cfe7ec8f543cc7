"""What one fit leaves to the next: what is in the file that is given, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.fits import LIGHTNING, RowLogger, differences, fit, trainer, weights
from support.nets import Plain, build, float64, seed_all
from support.passes import count_passes
from torch import Tensor

from lightning_same import AESAM, SAM, GradientNormMonitor, VaSSO, with_sam
from lightning_same.rules.timing import LastFraction


def test_a_second_fit_of_one_trainer_begins_without_the_file_of_the_first(tmp_path: Path) -> None:
    """VaSSO's first step climbs along g itself, as the average begins with it: |e . g| = rho |g|."""
    cosines: list[float] = []
    pass_one: list[Tensor] = []

    class Watched(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if self.sam_pass == 1:
                g = torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
                pass_one[:] = torch.cat([x.flatten() for x in g]), torch.cat([w.flatten() for w in weights(self)])
            if self.sam_pass == 2:
                g, w = pass_one
                e = torch.cat([x.flatten() for x in weights(self)]) - w
                cosines.append((e @ g / (e.norm() * g.norm())).item())
            return loss

    with float64():
        first = fit(with_sam(build(Plain), VaSSO(0.3)), max_epochs=1)
        first.save_checkpoint(tmp_path / "one.ckpt")
        made = trainer(max_epochs=2)
        module = with_sam(build(Watched), VaSSO(0.3, theta=0.2))
        made.fit(module, ckpt_path=tmp_path / "one.ckpt", **({} if LIGHTNING < (2, 6) else {"weights_only": True}))
        resumed = list(cosines)
        cosines.clear()
        made.fit_loop.max_epochs = 3
        made.fit(module)
    assert resumed[0] < 0.99
    assert cosines[0] == pytest.approx(1, abs=1e-9)
    assert cosines[1] < 0.99


class SavesInAWindow(Callback):
    """Writes a file after a batch that ends no window."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_fit_that_resumes_inside_a_window_perturbs_what_is_left_of_it(tmp_path: Path) -> None:
    """Of six batches in windows of three, a file is written after the first, the second, the fourth."""
    passes_left = {0: [1, 1, 2, 2, 1, 1, 1, 2, 2, 2], 1: [1, 2, 1, 1, 1, 2, 2, 2], 3: [1, 1, 2, 2]}
    for batch, expected in passes_left.items():
        path = tmp_path / f"{batch}.ckpt"
        module = with_sam(build(Plain), SAM(0.3))
        fit(module, max_epochs=1, accumulate_grad_batches=3, callbacks=[SavesInAWindow(path, batch)])
        resumed = with_sam(build(Plain), SAM(0.3))
        passes = count_passes(resumed)
        made = trainer(max_epochs=1, accumulate_grad_batches=3)
        seed_all(1)
        made.fit(resumed, ckpt_path=path, **({} if LIGHTNING < (2, 6) else {"weights_only": True}))
        assert passes == expected
        assert resumed.sam_pass == 0


def test_values_of_a_fit_that_was_aborted_are_not_those_of_the_next() -> None:
    """The next one's first step takes one pass, and has no second gradient to measure."""

    class Aborts(Plain):
        aborts = True

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.aborts:
                raise ValueError("after the monitor has measured")

    monitor, logger = GradientNormMonitor(), RowLogger()
    module = with_sam(build(Aborts), SAM(0.3))
    with pytest.raises(ValueError, match="after the monitor has measured"):
        fit(module, callbacks=[monitor], logger=logger, max_epochs=1)
    assert logger.rows == []
    module.aborts, module.sam = False, SAM(0.3, timing=LastFraction(0.5))
    fit(module, callbacks=[monitor], logger=logger, max_epochs=1)
    rows = [set(row) for _, row in logger.rows]
    assert ["grad_norm/base" in row for row in rows] == [False] * 3 + [True] * 3
    assert all("grad_norm/step" in row for row in rows)


def test_a_second_fit_with_a_rule_that_keeps_numbers_begins_anew() -> None:
    """AE-SAM's moments are of this fit's gradients."""
    with float64():
        module = with_sam(build(Plain), AESAM(0.3))
        fit(module, max_epochs=1)
        start = {name: value.clone() for name, value in module.state_dict().items()}
        fit(module, max_epochs=2)
        after = weights(module)
        other = with_sam(build(Plain), AESAM(0.3))
        other.load_state_dict(start)
        fit(other, max_epochs=2)
    assert differences(after, weights(other)) == []
