"""The batches that SharpnessMonitor measures on."""

from typing import Any
from unittest import mock

import pytest
import torch
from support.fits import fit
from support.nets import Plain, build
from support.sharpness import TOP, exact, measured
from torch.utils.data import DataLoader, IterableDataset

from lightning_same import SharpnessMonitor


def test_the_batches_may_be_given() -> None:
    batches = list(build(Plain).train_dataloader())
    expected = exact(build(Plain), [torch.cat(parts) for parts in zip(*batches, strict=True)])[-1].item()
    monitor = SharpnessMonitor(probe_batches=batches)
    assert measured(build(Plain), monitor)[0][TOP] == pytest.approx(expected, rel=1e-3)


def test_samples_fn_weighs_the_batches() -> None:
    batches = list(build(Plain).train_dataloader())[:2]
    monitor = SharpnessMonitor(probe_batches=batches, samples_fn=lambda batch: int(batch is not batches[0]))
    with mock.patch("lightning.pytorch.strategies.Strategy.batch_to_device", lambda self, batch, **_: batch):
        found = measured(build(Plain), monitor)[0][TOP]
    assert found == pytest.approx(exact(build(Plain), batches[1])[-1].item(), rel=1e-3)


class Skips(Plain):
    """Has no loss for some batches, as one that skips what is not finite."""

    skipped: Any = ()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if any(torch.equal(batch[0], each) for each in self.skipped):
            return None
        return super().training_step(batch, batch_idx)


def test_a_batch_without_a_loss_is_passed_over() -> None:
    batches = list(build(Plain).train_dataloader())
    module = build(Skips)
    module.skipped = [batches[0][0]]
    with pytest.warns(UserWarning, match="returns None for a probe batch. The next training batch takes its place"):
        rows = measured(module, SharpnessMonitor(every_n_steps=1), max_epochs=1)
    expected = exact(build(Plain), batches[1])[-1].item()
    assert rows[min(rows)][TOP] == pytest.approx(expected, rel=1e-3)
    module = build(Skips)
    module.skipped = [batches[0][0]]
    with pytest.warns(UserWarning, match="returns None for a probe batch. This measurement is left out"):
        assert measured(module, SharpnessMonitor(probe_batches=batches[:2]), max_epochs=1) == {}


class SkipsTheFourth(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        fourth = self.trainer.fit_loop.epoch_loop.batch_idx == 3
        return None if fourth else super().training_step(batch, batch_idx)


def test_a_batch_that_was_measured_on_stays() -> None:
    """Also where it has no loss once. The weights stay where they are, so only another batch makes a difference."""
    with pytest.warns(UserWarning, match="This measurement is left out"):
        rows = measured(build(SkipsTheFourth, lr=1e-20), SharpnessMonitor(every_n_steps=1), max_epochs=1)
    assert len(rows) == 5
    assert len({row[TOP] for row in rows.values()}) == 1


def test_given_batches_get_the_precision_of_the_training() -> None:
    batch = next(iter(build(Plain).train_dataloader()))
    expected = exact(build(Plain).double(), [batch[0].double(), batch[1]])[-1].item()
    rows = measured(build(Plain), SharpnessMonitor(probe_batches=[batch]), max_steps=1, precision="64-true")
    assert rows[0][TOP] == pytest.approx(expected, rel=1e-3)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(build(Plain).train_dataloader())[:4])


def test_an_epoch_of_unknown_length_that_is_too_short_is_told_once() -> None:
    class Streamed(Plain):
        def train_dataloader(self) -> Any:
            return DataLoader(Endless(), batch_size=None)

    with pytest.warns(UserWarning, match="`probe_batches` is 9, and the epoch had only 4 batches") as seen:
        assert measured(build(Streamed), SharpnessMonitor(probe_batches=9), max_epochs=2) == {}
    assert sum("nothing is measured yet" in str(each.message) for each in seen) == 1


def test_given_batches_go_the_way_of_the_training_batches() -> None:
    class Tenfold(Plain):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [10 * batch[0], batch[1]]

    given = next(iter(build(Plain).train_dataloader()))
    taken, told = (measured(build(Tenfold), SharpnessMonitor(probe_batches=each)) for each in (1, [given]))
    assert told[0] == taken[0]
    assert told[0][TOP] == pytest.approx(exact(build(Plain), [10 * given[0], given[1]])[-1].item(), rel=1e-3)


def test_there_must_be_a_batch() -> None:
    with pytest.raises(ValueError, match="SharpnessMonitor: `probe_batches` holds no batch"):
        measured(build(Plain), SharpnessMonitor(probe_batches=[]))


@pytest.mark.parametrize("run", [True, 2])
def test_a_run_of_few_batches_measures_on_these(run: bool | int) -> None:
    monitor = SharpnessMonitor(probe_batches=4)
    made = fit(build(Plain), callbacks=[monitor], fast_dev_run=run)
    batches = list(build(Plain).train_dataloader())[: int(run)]
    module = build(Plain)
    optimizer = module.configure_optimizers()
    for batch in batches[:-1]:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    expected = exact(module, [torch.cat(parts) for parts in zip(*batches, strict=True)])[-1].item()
    assert made.callback_metrics[TOP] == pytest.approx(expected, rel=1e-3)


def test_an_epoch_must_hold_the_batches() -> None:
    with pytest.raises(ValueError, match="`probe_batches` is 7, but an epoch has only 6"):
        measured(build(Plain), SharpnessMonitor(probe_batches=7))


@pytest.mark.parametrize(
    "batches",
    [iter([]), DataLoader([]), "4", None, torch.zeros(3)],
    ids=["iterator", "loader", "word", "nothing", "tensor"],
)
def test_what_is_no_list_of_batches_is_told(batches: Any) -> None:
    with pytest.raises(ValueError, match="`probe_batches` must be a whole number >= 1 or a list of batches, got"):
        SharpnessMonitor(probe_batches=batches)


def test_nothing_of_the_size_of_weights_or_batches_is_kept_after_a_fit() -> None:
    given = list(build(Plain).train_dataloader())[:1]
    for batches in (1, given):
        monitor = SharpnessMonitor(probe_batches=batches, every_n_epochs=1, track=True)
        fit(build(Plain), callbacks=[monitor], max_epochs=1)
        held = [each for part in (monitor, monitor._probe) for each in vars(part).values() if each is not given]
        assert [each for each in torch.utils._pytree.tree_leaves(held) if isinstance(each, torch.Tensor)] == []


@pytest.mark.parametrize(("count", "forwards", "backwards"), [(1, 3, 0), (2, 6, 2)])
def test_a_measurement_takes_a_few_passes_beside_its_products(
    count: int, forwards: int, backwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one batch: does it have a loss, the graph, L(w + e). For several the graph is made anew for each product."""
    seen = {"forwards": 0, "graphs": 0, "backwards": 0}
    gradient = torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        seen["graphs" if options.get("create_graph") else "backwards"] += 1
        return gradient(*args, **options)

    class Counting(SharpnessMonitor):
        def _measure(self, *args: Any) -> None:
            monkeypatch.setattr(torch.autograd, "grad", counted)
            handle = module.layers.register_forward_hook(lambda *_: seen.update(forwards=seen["forwards"] + 1))
            super()._measure(*args)
            handle.remove()
            monkeypatch.undo()

    module = build(Plain)
    made = fit(module, callbacks=[Counting(probe_batches=count)], max_steps=count)
    products = int(made.callback_metrics["sharpness/hvps"]) * count
    graphs = products if count > 1 else 1
    assert seen == {
        "forwards": forwards + (graphs if count > 1 else 0),
        "graphs": graphs,
        "backwards": products + backwards,
    }
