"""What the monitors of the two gradients log, against loops by hand and a closed form."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, fit
from support.monitored import GROUPS, MONITORS, NORMS, STEP, class_zero, measured, rows_of
from support.nets import Everything, Plain, build, float64
from support.ranks import Ranks
from support.sharded import Sharded, needs_fsdp2, strategy, whole
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_same import SAM, SAME, CheckpointFractionMonitor, GradientNormMonitor, LookSAM, with_sam


def by_hand(rule: Any, accumulate: int, two_pass: bool) -> list[dict[str, float]]:
    """A plain loop by autograd. Without a rule g and s are those of the first batch of a window, and d = g of all."""
    module = build(Plain)
    params, optimizer = list(module.parameters()), module.configure_optimizers()
    batches = list(module.train_dataloader())
    expected = []
    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]

        def gradient(window: Any) -> Any:
            return torch.autograd.grad(sum(module.training_step(b, 0) for b in window) / len(window), params)

        g = whole = gradient(window)
        if not two_pass:
            g = gradient(window[:1])
        with rule.perturbed(params, g):
            s = gradient(window if two_pass else window[:1])
        d = rule.combine(g, s) if two_pass else whole
        expected.append(measured(params, g, s, d))
        for param, grad in zip(params, d, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return expected


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("rule", [SAM(0.3), SAME(1, 3.0, 0.3), None], ids=repr)
def test_it_logs_the_norms_of_the_step(rule: Any, accumulate: int) -> None:
    expected = by_hand(rule or SAM(0.3), accumulate, two_pass=rule is not None)
    module = build(Plain) if rule is None else with_sam(build(Plain), rule)
    rows = rows_of(module, GradientNormMonitor(rho=0.3), accumulate_grad_batches=accumulate, max_epochs=1)
    # The share of the rest is what the others leave of 1, to rounding.
    assert [row for _, row in rows] == [pytest.approx(each, rel=2e-5, abs=1e-7) for each in expected]
    assert [step for step, _ in rows] == list(range(6 // accumulate))


@pytest.mark.parametrize("rule", [SAM(0.3), None], ids=repr)
def test_no_norm_holds_the_loss_scale(rule: Any) -> None:
    def first_row(precision: Any) -> dict[str, float]:
        module = build(Plain) if rule is None else with_sam(build(Plain), rule)
        monitor = GradientNormMonitor(rho=0.3, per_layer=True)
        return rows_of(module, monitor, precision=precision, max_steps=1)[0][1]

    exact = first_row("32-true")
    for precision in ("16-scaled", "bf16-mixed"):
        found = first_row(precision)
        large = {key: value for key, value in exact.items() if value > 0.1}
        assert len(large) > 10
        assert {key: found[key] for key in large} == pytest.approx(large, rel=0.1)


def test_the_step_is_measured_before_clipping() -> None:
    def first_row(**options: Any) -> dict[str, float]:
        return rows_of(with_sam(build(Plain), SAM(0.3)), GradientNormMonitor(), max_steps=1, **options)[0][1]

    assert first_row(gradient_clip_val=1e-3) == first_row()


@pytest.mark.parametrize("mixed", [True, False])
def test_the_weights_norm_is_of_all_that_the_optimizer_steps(mixed: bool) -> None:
    """Also of what no batch reaches, which has no gradient; not of what is frozen."""

    class More(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.frozen = nn.Parameter(torch.full((4,), 50.0)), nn.Parameter(torch.full((4,), 9.0))
            self.frozen.requires_grad_(False)

    module = with_sam(build(More), SAM(0.3)) if mixed else build(More)
    expected = [param.detach().double() for param in module.parameters() if param.requires_grad]
    norm = torch.cat([value.flatten() for value in expected]).norm().item()
    assert norm > 100
    assert rows_of(module, GradientNormMonitor(), max_steps=1)[0][1]["weight_norm"] == pytest.approx(norm)


class Quadratic(pl.LightningModule):
    """L(w) = w A w / 2 with a known Hessian A, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(300, 300, generator=generator, dtype=torch.float64)
        self.hessian = (root + root.T) / 2
        self.w = nn.Parameter(torch.randn(300, generator=generator, dtype=torch.float64))

    def training_step(self, batch: Any) -> Tensor:
        return self.w @ self.hessian @ self.w / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(4, 1))


@pytest.mark.parametrize("mixed", [True, False])
def test_on_a_quadratic_the_values_are_those_of_the_closed_form(mixed: bool) -> None:
    """g = A w and s = A (w + rho g / |g|), so r - 1 = rho (A g) / (g |g|): no gradient is taken here."""
    rho = 3.0
    module = Quadratic()
    hessian, w = module.hessian.numpy(), module.w.detach().numpy().copy()
    rows = rows_of(
        with_sam(module, SAM(rho)) if mixed else module,
        *(monitor(rho=rho) for monitor in MONITORS),
        max_epochs=1,
    )
    assert len(rows) == 4
    for _, row in rows:
        g = hessian @ w
        r = 1 + rho * (hessian @ g) / (g * np.linalg.norm(g))
        s = r * g
        masks = [r > 1, (r > 0) & (r < 1), r < -1, (r < 0) & (r > -1)]
        assert all(mask.any() for mask in masks)
        assert [row[f"ckpt_fraction/{name}"] for name in GROUPS] == [mask.mean() for mask in masks]
        assert [row[f"grad_norm/{name}"] for name in GROUPS] == pytest.approx([np.linalg.norm(s[m]) for m in masks])
        assert row["grad_cosine"] == pytest.approx(g @ s / np.linalg.norm(g) / np.linalg.norm(s))
        assert row["weight_norm"] == pytest.approx(np.linalg.norm(w))
        w -= 1e-3 * (s if mixed else g)


@pytest.mark.parametrize("mixed", [True, False])
def test_both_gradients_see_the_same_random_numbers_and_buffers(mixed: bool) -> None:
    """With a tiny rho nothing else is left that could part them: dropout, spectral norm, a generator, numpy, random."""
    module = with_sam(build(Everything), SAM(1e-5)) if mixed else build(Everything)
    rows = rows_of(module, GradientNormMonitor(rho=1e-5, noisy_mask=class_zero), max_epochs=1)
    cosines = [value for _, row in rows for key, value in row.items() if "cosine" in key]
    assert len(cosines) == 3 * 6
    assert min(cosines) > 0.999


def test_sharing_a_probe_changes_no_value() -> None:
    alone = [rows_of(build(Plain), monitor(), max_epochs=1) for monitor in MONITORS]
    together = rows_of(build(Plain), *(monitor() for monitor in MONITORS), max_epochs=1)
    assert together == [(step, one | two) for (step, one), (_, two) in zip(*alone, strict=True)]


def test_steps_without_a_second_pass_have_a_step_and_weights() -> None:
    rows = rows_of(with_sam(build(Plain), LookSAM(0.3, k=3)), GradientNormMonitor(), max_epochs=1)
    assert [sorted(row) for _, row in rows] == 2 * [sorted(NORMS + STEP), sorted(STEP), sorted(STEP)]


@pytest.mark.parametrize("mixed", [True, False])
def test_values_per_layer_sum_up_to_the_total(mixed: bool) -> None:
    module = with_sam(build(Plain), SAM(0.3)) if mixed else build(Plain)
    sizes = {name: param.numel() for name, param in module.named_parameters()}
    rows = rows_of(module, *(monitor(per_layer=True) for monitor in MONITORS))
    assert len(sizes) == 4
    for _, row in rows:
        for group in (*GROUPS, "rest"):
            counts = [size * row[f"ckpt_fraction_layer/{name}/{group}"] for name, size in sizes.items()]
            assert counts == pytest.approx([round(count) for count in counts])
            assert sum(counts) / sum(sizes.values()) == pytest.approx(row[f"ckpt_fraction/{group}"])
        for value in ("base", "perturbed", "step", *GROUPS):
            squares = [row[f"grad_norm_layer/{name}/{value}"] ** 2 for name in sizes]
            assert sum(squares) ** 0.5 == pytest.approx(row[f"grad_norm/{value}"])
        assert sum(row[f"weight_norm_layer/{name}"] ** 2 for name in sizes) ** 0.5 == pytest.approx(row["weight_norm"])
        assert all(-1 <= row[f"grad_cosine_layer/{name}"] <= 1 for name in sizes)


@pytest.mark.parametrize("mixed", [True, False])
def test_a_layer_that_no_batch_reaches_has_weights_and_no_gradient(mixed: bool) -> None:
    class Idle(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(2, 2, bias=False)

    module = with_sam(build(Idle), SAM(0.3)) if mixed else build(Idle)
    ((_, row),) = rows_of(module, GradientNormMonitor(per_layer=True), max_steps=1)
    assert [key for key in row if "idle" in key] == ["weight_norm_layer/idle.weight"]


def test_a_layer_that_the_step_freezes_has_no_gradient() -> None:
    class Freezes(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.layers[0].requires_grad_(False)
            return super().training_step(batch, batch_idx)

    ((_, row),) = rows_of(build(Freezes), GradientNormMonitor(per_layer=True, rho=0.3), max_steps=1)
    assert "grad_norm_layer/layers.2.weight/base" in row
    assert "grad_norm_layer/layers.0.weight/base" not in row


class Named(Plain):
    """Two groups, one of which has a name."""

    def configure_optimizers(self) -> Any:
        first, second = self.layers[0].parameters(), self.layers[2].parameters()
        return torch.optim.SGD([{"params": first, "name": "first"}, {"params": second}], lr=0.1)


@pytest.mark.parametrize("mixed", [True, False])
def test_values_per_group_are_those_of_its_parameters(mixed: bool) -> None:
    module = build(Named)
    first = list(module.layers[0].parameters())
    x_and_y = next(iter(module.train_dataloader()))
    rule, params = SAM(0.3), list(module.parameters())

    def gradient() -> Any:
        return torch.autograd.grad(module.training_step(x_and_y, 0), params)

    g = gradient()
    with rule.perturbed(params, g):
        s = gradient()
    d = s if mixed else g
    groups = {"first": slice(0, len(first)), "pg2": slice(len(first), None)}
    expected = {name: measured(params[cut], g[cut], s[cut], d[cut]) for name, cut in groups.items()}
    monitors = [kind(per_group=True, rho=0.3) for kind in MONITORS]
    ((_, row), *_) = rows_of(with_sam(module, rule) if mixed else module, *monitors, max_steps=1)
    for name, values in expected.items():
        for key, value in values.items():
            group, slash, rest = key.partition("/")
            assert row[f"{group}_group/{name}{slash}{rest}"] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    sizes = {name: sum(param.numel() for param in params[cut]) for name, cut in groups.items()}
    for ckpt in (*GROUPS, "rest"):
        counted = sum(sizes[name] * row[f"ckpt_fraction_group/{name}/{ckpt}"] for name in groups)
        assert counted == pytest.approx(sum(sizes.values()) * row[f"ckpt_fraction/{ckpt}"], abs=1e-4)


def test_bins_sum_up_to_their_checkpoint() -> None:
    """Those of the clean and of the noisy samples under keys of their own."""
    monitor = CheckpointFractionMonitor(histogram=True, noisy_mask=class_zero)
    ((_, row),) = rows_of(with_sam(build(Plain), SAM(0.3)), monitor, max_steps=1)
    for of in ("", "_clean", "_noisy"):
        for group in GROUPS:
            start = f"ckpt_histogram{of}/{group}/"
            bins = {key.removeprefix(start): value for key, value in row.items() if key.startswith(start)}
            assert list(bins) == ["1-1.2", "1.2-1.5", "1.5-2", "2-4", "4-8", "8-16", "16-inf"]
            assert sum(bins.values()) == pytest.approx(row[f"ckpt_fraction{of}/{group}"])


def last_values(mixed: bool) -> dict[str, float]:
    with float64():
        options: Any = {}
        if torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            options = {"devices": size, "strategy": DDPStrategy(process_group_backend="gloo")}
        module = with_sam(build(Plain), SAM(0.3)) if mixed else build(Plain)
        made = fit(module, callbacks=[monitor(rho=0.3, per_layer=True) for monitor in MONITORS], **options)
    return {name: value.item() for name, value in made.callback_metrics.items()}


@pytest.mark.parametrize("mixed", [True, False])
def test_every_rank_holds_the_values_of_the_whole_batch(ranks: dict[int, Ranks], mixed: bool) -> None:
    one, two = ranks[2].run(last_values, mixed)
    assert one == two == pytest.approx(last_values(mixed))


def over_shards(mixed: bool, monitored: bool = True) -> tuple[list[dict[str, float]], list[Tensor]]:
    """The rows, and the weights at the end."""
    monitors = [CheckpointFractionMonitor(per_layer=True, histogram=True), GradientNormMonitor(per_layer=True)]
    options = strategy() if torch.distributed.is_initialized() else {}
    module = with_sam(build(Sharded), SAM(0.3)) if mixed else build(Sharded)
    rows = rows_of(module, *(monitors if monitored else []), max_epochs=1, **options)
    return [row for _, row in rows], whole(module)


@needs_fsdp2
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("mixed", [True, False])
def test_over_shards_the_values_are_those_of_the_whole(ranks: dict[int, Ranks], mixed: bool, size: int) -> None:
    """FSDP2: every process holds a part of each parameter, and on 4 of them some hold none of one."""
    expected, _ = over_shards(mixed)
    (rows, weights), *others = ranks[size].run(over_shards, mixed)
    assert not any(more for more, _ in others)
    assert [*map(dict, rows)] == [pytest.approx(row, rel=1e-4, abs=1e-7) for row in expected]
    if not mixed:
        # Nothing is disturbed, and `.grad` is as it was.
        assert differences(weights, ranks[size].run(over_shards, mixed, False)[0][1]) == []


class Fused(Plain):
    """With an optimizer that unscales the gradients within its step, or one that finds them unscaled."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=self.fused)


@pytest.mark.parametrize("rule", [SAM(0.3), None], ids=repr)
def test_the_steps_norm_is_not_the_loss_scalers(rule: Any) -> None:
    logged = []
    for fused in (True, False):
        module = build(Fused, fused)
        if rule is not None:
            module = with_sam(module, rule)
        rows = rows_of(module, GradientNormMonitor(every_n_steps=1), precision="16-scaled")
        logged.append([row["grad_norm/step"] for _, row in rows])
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)
    assert all(0 < norm < 10 for norm in logged[0])


def doubled(module: Any, batch: Any) -> Tensor:
    return 2 * module.training_step(batch, 0)


@pytest.mark.parametrize("other", [{"rho": 0.5}, {"loss_fn": doubled}], ids=["radius", "loss"])
def test_monitors_of_several_radii_or_losses_probe_for_themselves(other: Any) -> None:
    def perturbed(*monitors: GradientNormMonitor) -> list[float]:
        rows = rows_of(build(Plain), *monitors, max_steps=1)
        return [value for _, row in rows for key, value in row.items() if key.endswith("/perturbed")]

    one, another = perturbed(GradientNormMonitor()), perturbed(GradientNormMonitor(**other))
    assert one != another
    both = perturbed(GradientNormMonitor(), GradientNormMonitor(**other, name="other"))
    assert sorted(both) == sorted(one + another)
