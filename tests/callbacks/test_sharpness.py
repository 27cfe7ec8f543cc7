"""SharpnessMonitor: what it measures, and when."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from support.fits import RowLogger, fit, trainer
from support.nets import Plain, TwoOptimizers, build
from support.sharpness import GAP, TOP, exact, measured, rise
from torch import Tensor, nn

from lightning_same import (
    ASAM,
    SAM,
    SAME,
    CheckpointEffectMonitor,
    FriendlySAM,
    MomentumSAM,
    Progress,
    SAMMixin,
    SharpnessMonitor,
    with_sam,
)
from lightning_same.curvature.eigenvalues import extreme_eigenvalues
from lightning_same.rules.schedules import Linear


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_the_values_are_those_of_the_first_batches_at_the_weights_of_the_step(count: int, accumulate: int) -> None:
    """Against the dense Hessian, in a training loop written out."""
    module = build(Plain)
    optimizer = module.configure_optimizers()
    batches = list(module.train_dataloader())
    probe = [torch.cat(parts) for parts in zip(*batches[:count], strict=True)]
    expected = []
    for epoch in range(2):
        for index in range(0, len(batches), accumulate):
            twin = build(Plain)
            twin.load_state_dict(module.state_dict())
            eigenvalues = exact(module, probe)
            expected.append((eigenvalues[-1].item(), eigenvalues[0].item(), rise(twin, probe, 0.2)))
            optimizer.zero_grad()
            for batch in batches[index : index + accumulate]:
                (module.training_step(batch, 0) / accumulate).backward()
            optimizer.step()
        assert epoch < 2
    monitor = SharpnessMonitor(every_n_steps=1, probe_batches=count, rho=0.2, both_ends=True, max_products=103)
    rows = measured(build(Plain), monitor, accumulate_grad_batches=accumulate)
    first = (count - 1) // accumulate  # with more than one, the first measurement waits for them
    assert list(rows) == list(range(first, 12 // accumulate))
    for step, row in rows.items():
        top, bottom, gap = expected[step]
        assert row[TOP] == pytest.approx(top, rel=1e-3)
        assert row["sharpness/bottom_eigenvalue"] == pytest.approx(bottom, rel=1e-2, abs=1e-5)
        assert row[GAP] == pytest.approx(gap, rel=1e-3, abs=1e-6)
        assert row["sharpness/converged"] == 1
        assert row["sharpness/residual"] <= 2e-3 * row[TOP] + 1e-6
        assert row["sharpness/hvps"] >= 4


def test_the_gap_is_that_of_the_rule() -> None:
    def gap(rule: Any, **options: Any) -> float:
        return measured(with_sam(build(Plain), rule), SharpnessMonitor(**options), max_steps=1)[0][GAP]

    batch = next(iter(build(Plain).train_dataloader()))
    for rho in (0.1, 0.4):
        assert gap(SAM(rho)) == gap(SAME(1, 3.0, rho)) == pytest.approx(rise(build(Plain), batch, rho), rel=1e-4)
    # e that depends on more than g has no place in a probe, which must not feed a moving average: SAM's at that radius.
    assert gap(FriendlySAM(0.4)) == gap(MomentumSAM(0.4)) == gap(SAM(0.4))
    assert gap(SAM(Linear(0.4, 0.0))) == gap(SAM(0.4))
    assert gap(SAM(0.1), rho=0.4) == gap(SAM(0.4))

    def by_hand(rule: Any) -> float:
        module = build(Plain)
        params = list(module.parameters())
        loss = module.training_step(batch, 0)
        with rule.perturbed(params, torch.autograd.grad(loss, params)):
            return (module.training_step(batch, 0) - loss).item()

    assert gap(ASAM(0.4)) == pytest.approx(by_hand(ASAM(0.4)), rel=1e-4)
    assert gap(ASAM(0.4)) != pytest.approx(gap(SAM(0.4)), rel=1e-2)


def test_the_gap_is_at_the_radius_of_the_moment() -> None:
    """After three of twelve steps a radius that falls from 0.4 to 0 is 0.3."""
    monitors = [SharpnessMonitor(every_n_steps=3), SharpnessMonitor(every_n_steps=3, rho=0.3, name="fixed")]
    logger = RowLogger()
    fit(with_sam(build(Plain), SAM(Linear(0.4, 0.0))), callbacks=monitors, logger=logger, max_epochs=2)
    gaps = [{key: row[key] for key in row if key.endswith("ascent_gap")} for step, row in logger.rows if step == 3]
    (own, fixed) = (next(row[key] for row in gaps if key in row) for key in (GAP, "sharpness/fixed/ascent_gap"))
    assert own == pytest.approx(fixed, rel=1e-5)


SHARPNESS = partial(SharpnessMonitor, loss_fn=lambda module, batch: module.critic(batch[0]).square().mean())
EFFECTS = partial(
    CheckpointEffectMonitor,
    losses_fn=lambda module, batch: module.critic(batch[0]).square().flatten(),
    noisy_mask=lambda batch: batch[1] == 0,
)


@pytest.mark.parametrize(
    ("monitor", "steps"),
    [
        (partial(SHARPNESS, every_n_steps=3), range(12)),
        (partial(SHARPNESS, every_n_epochs=1), range(13)),
        (partial(EFFECTS, every_n_steps=3), range(12)),
    ],
    ids=["sharpness, by steps", "sharpness, by epochs", "effects"],
)
def test_with_several_optimizers_the_radius_of_the_moment_is_that_of_their_steps(monitor: Any, steps: range) -> None:
    """Twelve batches, in each of which two optimizers step: the schedule counts batches, for the monitor too."""
    seen: set[tuple[int, int | None]] = set()

    class Watched(Linear):
        def value(self, at: Progress) -> float:
            seen.add((at.step, at.total))
            return super().value(at)

    class Manual(SAMMixin, TwoOptimizers):
        sam = SAM(Watched(0.4, 0.1))

        def step(self, loss_fn: Any, optimizer: Any) -> None:
            self.two_pass_step(loss_fn, optimizer)

    fit(build(Manual), max_epochs=2, callbacks=[monitor()])
    assert seen == {(step, 12) for step in steps}


def test_a_group_with_radius_0_is_not_perturbed() -> None:
    class Grouped(Plain):
        def configure_optimizers(self) -> Any:
            first, last = self.layers[0].parameters(), self.layers[2].parameters()
            return torch.optim.SGD([{"params": first, "rho": 0.0}, {"params": last}], lr=0.1)

    found = measured(with_sam(build(Grouped), SAM(0.4)), SharpnessMonitor(), max_steps=1)[0][GAP]
    module = build(Plain)
    batch = next(iter(module.train_dataloader()))
    module.layers[0].requires_grad_(False)
    params = list(module.layers[2].parameters())
    loss = module.training_step(batch, 0)
    with SAM(0.4).perturbed(params, torch.autograd.grad(loss, params)):
        assert found == pytest.approx((module.training_step(batch, 0) - loss).item(), rel=1e-4)


def test_what_the_step_freezes_has_no_curvature() -> None:
    class Freezes(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.layers[0].requires_grad_(False)
            return super().training_step(batch, batch_idx)

    module = build(Plain)
    x, y = next(iter(module.train_dataloader()))
    expected = exact(module.layers[2], (module.layers[:2](x).detach(), y))[-1].item()
    found = measured(build(Freezes), SharpnessMonitor(), max_steps=1)
    assert found[0][TOP] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_mode_is_the_modules_or_eval(mode: Any) -> None:
    class Normed(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.layers.insert(1, nn.BatchNorm1d(10))

    module = build(Normed)
    module.train(mode == "train")
    batch = next(iter(module.train_dataloader()))
    expected = exact(module, batch)[-1].item()
    found = measured(build(Normed), SharpnessMonitor(mode=mode), max_steps=1)
    assert found[0][TOP] == pytest.approx(expected, rel=1e-3)


def test_every_forward_sees_the_same_state() -> None:
    class Drifts(Plain):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.calls += 1
            return self.calls * super().training_step(batch, batch_idx)

    batches = list(build(Plain).train_dataloader())[:2]
    monitor = SharpnessMonitor(probe_batches=batches, rho=0.2)
    assert measured(build(Drifts), monitor, max_steps=1) == measured(build(Plain), monitor, max_steps=1)


def test_a_training_step_may_write_to_its_batch() -> None:
    class Doubles(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([2 * batch[0], batch[1]], batch_idx)

    class DoublesInPlace(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batch[0].mul_(2)
            return super().training_step(batch, batch_idx)

    for count in (1, 2):
        rows = [
            measured(build(kind), SharpnessMonitor(every_n_steps=1, probe_batches=count), max_epochs=1)
            for kind in (Doubles, DoublesInPlace)
        ]
        assert rows[0] == rows[1]


def test_mixed_precision_is_measured_in_full() -> None:
    full = measured(build(Plain), SharpnessMonitor(), max_steps=1)
    for precision in ("bf16-mixed", "16-scaled"):
        assert measured(build(Plain), SharpnessMonitor(), max_steps=1, precision=precision) == full


def test_when_it_measures() -> None:
    assert list(measured(build(Plain), SharpnessMonitor(every_n_steps=5))) == [0, 5, 10]
    assert list(measured(build(Plain), SharpnessMonitor(every_n_steps=5, probe_batches=4))) == [3, 5, 10]
    assert list(measured(build(Plain), SharpnessMonitor(every_n_epochs=2), max_epochs=5)) == [11, 23]
    assert list(measured(build(Plain), SharpnessMonitor())) == [0]
    # An epoch of a single step ends under that step, the first one under step 0.
    assert list(measured(build(Plain, samples=8), SharpnessMonitor(every_n_epochs=1))) == [0, 1]


def test_tracking_agrees_and_takes_fewer_products() -> None:
    cold, warm = (
        measured(build(Plain, lr=1e-4), SharpnessMonitor(every_n_steps=1, tolerance=1e-4, track=track), max_epochs=4)
        for track in (False, True)
    )
    for step, row in cold.items():
        assert warm[step][TOP] == pytest.approx(row[TOP], rel=1e-4)
    saved = [row["sharpness/hvps"] - warm[step]["sharpness/hvps"] for step, row in cold.items()]
    assert sum(saved) >= len(saved) / 2


def test_tracking_begins_anew_where_parameters_were_unfrozen() -> None:
    class Unfrozen(Plain):
        def on_train_epoch_start(self) -> None:
            self.layers[0].requires_grad_(self.current_epoch > 0)

    cold, warm = (measured(build(Unfrozen), SharpnessMonitor(every_n_epochs=1, track=track)) for track in (False, True))
    assert [row[TOP] for row in warm.values()] == pytest.approx([row[TOP] for row in cold.values()], rel=1e-3)
    assert len(cold) > 1


@pytest.mark.parametrize("track", [False, True])
def test_a_search_that_is_led_by_the_last_one_starts_at_another_random_vector(
    track: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an eigenvector that the first start misses would be missed for ever."""
    seeds, starts = [], []

    def watched(hessian: Any, tolerance: Any, both: Any, most: Any, seed: int, start: Any, confident: Any) -> Any:
        seeds.append(seed)
        starts.append(start)
        return extreme_eigenvalues(hessian, tolerance, both, most, seed, start, confident)

    monkeypatch.setattr("lightning_same.callbacks.sharpness_measures.extreme_eigenvalues", watched)
    measured(build(Plain), SharpnessMonitor(every_n_steps=3, seed=7, track=track), max_epochs=1)
    assert len(set(seeds)) == (len(seeds) if track else 1)
    assert [start is None for start in starts] == [True, not track]


def test_what_has_not_converged_says_so() -> None:
    with pytest.warns(UserWarning, match=r"has not converged.*sharpness/converged = 0.*`max_products` is 2"):
        rows = measured(build(Plain), SharpnessMonitor(max_products=2), max_steps=1)
    assert rows[0]["sharpness/converged"] == 0

    class Bad(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * math.inf

    with pytest.warns(UserWarning, match="not finite"):
        rows = measured(build(Bad), SharpnessMonitor(), max_steps=1)
    assert math.isnan(rows[0][TOP])
    assert rows[0]["sharpness/converged"] == 0


def test_a_resumed_training_measures_at_the_same_steps(tmp_path: Path) -> None:
    batches = list(build(Plain).train_dataloader())[:2]

    def monitor() -> SharpnessMonitor:
        return SharpnessMonitor(every_n_steps=5, probe_batches=batches)

    whole = measured(build(Plain), monitor(), max_epochs=4)
    keep = ModelCheckpoint(tmp_path, save_last=True)
    made = trainer(callbacks=[monitor(), keep], max_epochs=2, enable_checkpointing=True)
    made.fit(build(Plain))
    logger = RowLogger()
    made = trainer(callbacks=[monitor()], max_epochs=4, logger=logger)
    made.fit(build(Plain), ckpt_path=tmp_path / "last.ckpt")
    resumed = {step: row for step, row in logger.rows if TOP in row}
    assert resumed == {step: row for step, row in whole.items() if step >= 12}
    assert list(resumed) == [15, 20]


def test_an_instance_may_serve_two_fits() -> None:
    monitor = SharpnessMonitor(every_n_steps=5)
    first = measured(build(Plain), monitor)
    assert first == measured(build(Plain), monitor)
    monitor.load_state_dict({"last_step": 10})  # as from a file, for the next fit alone
    assert list(measured(build(Plain), monitor)) == []
    assert measured(build(Plain), monitor) == first


def test_other_callbacks_can_monitor_it(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor=TOP, every_n_train_steps=2)
    stop = EarlyStopping(GAP, patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    monitor = SharpnessMonitor(every_n_epochs=1)
    made = fit(build(Plain), callbacks=[monitor, stop], max_epochs=5)
    assert made.current_epoch == 2
    monitor = SharpnessMonitor(every_n_steps=2, prog_bar=True)
    made = fit(build(Plain), callbacks=[monitor, keep], enable_checkpointing=True)
    assert keep.best_model_score is not None
    assert made.progress_bar_metrics["top_eigenvalue"] == pytest.approx(made.callback_metrics[TOP].item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be a whole number >= 1, got 0"),
        ({"every_n_steps": 1.5}, "`every_n_steps` must be a whole number >= 1"),
        ({"every_n_epochs": True}, "`every_n_epochs` must be a whole number >= 1"),
        ({"every_n_steps": 1, "every_n_epochs": 1}, "either `every_n_steps` or `every_n_epochs`"),
        ({"max_products": 0}, "`max_products` must be a whole number >= 1"),
        ({"probe_batches": 0}, "`probe_batches` must be a whole number >= 1"),
        ({"rho": 0}, "`rho` must be a finite number > 0"),
        ({"tolerance": math.nan}, "`tolerance` must be a finite number > 0"),
        ({"mode": "test"}, '`mode` must be "eval" or "train"'),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharpnessMonitor(**options)
