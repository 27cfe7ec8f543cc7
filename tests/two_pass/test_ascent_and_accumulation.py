"""`TwoPassOptions`: whose gradient is climbed, what is perturbed under accumulation, what a bad number does.

The oracle is a loop by hand on one process: the shards of all ranks and all micro-batches one after the other.
"""

import tempfile
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, fit, observed_fit
from support.nets import Everything, Plain, build, float64, loader
from support.ranks import Ranks
from torch import Tensor, nn

from lightning_same import ASAM, GSAM, SAM, SAME, USAM, CheckpointSelect, Rule, SAMMixin, checkpoint_fractions, with_sam
from lightning_same.gradients.pair import TwoGradients

RULES = [SAM(0.3), ASAM(0.5), USAM(0.3), SAME((1, 4), 2.0, 0.3), CheckpointSelect((1, 4), 0.3), GSAM(0.2, 0.3)]


class Wide(Plain):
    """With one parameter that is used on the first rank, or in the first micro-batch, alone."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = nn.Linear(6, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self(x)
        if x[0, 0] > 0:
            out = out + self.extra(x)
        return nn.functional.cross_entropy(out, y)


def hand_loop(rule: Rule, ranks: int, micro_batches: int, ascent: str, accumulate: str, kind: Any = Plain) -> Any:
    """Two epochs in float64, every share of a step written out, and the fractions of each step."""
    with float64():
        module = build(kind, batch_size=8)
        params = list(module.parameters())
        optimizer = module.configure_optimizers()
        x, y = (torch.cat(part) for part in zip(*loader(48, 8, torch.float64), strict=True))
    # Rank r reads every `ranks`-th sample, 8 / ranks at a time.
    per_rank = [(x[r::ranks].split(8 // ranks), y[r::ranks].split(8 // ranks)) for r in range(ranks)]
    fractions = []
    used: list[bool] = []

    def gradient(share: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        loss = sum(module.training_step(batch, 0) for batch in share) / len(share)
        found = torch.autograd.grad(loss, params, allow_unused=True)
        used[:] = [g is not None or before for g, before in zip(found, used or [False] * len(params), strict=True)]
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]

    def mean(of: list[list[Tensor]]) -> list[Tensor]:
        return [torch.stack(each).mean(dim=0) for each in zip(*of, strict=True)]

    for _ in range(2):
        for start in range(0, 6, micro_batches):
            window = [
                [(xs[b], ys[b]) for xs, ys in per_rank] for b in range(start, start + micro_batches)
            ]  # by micro-batch, then by rank
            if accumulate == "micro_batch":
                groups = window
            else:
                groups = [[share for micro_batch in window for share in micro_batch]]
                if ascent == "local":
                    by_rank = [[micro_batch[r] for micro_batch in window] for r in range(ranks)]
                    groups = [by_rank]
            base, perturbed = [], []
            for group in groups:
                if ascent == "global":
                    shares = [[each for item in group for each in (item if isinstance(item, list) else [item])]]
                else:
                    shares = [item if isinstance(item, list) else [item] for item in group]
                for share in shares:
                    g = gradient(share)
                    with rule.perturbed(params, g):
                        s = gradient(share)
                    base.append(g)
                    perturbed.append(s)
            # What no share uses is not stepped.
            g, s = (list(compress(mean(each), used)) for each in (base, perturbed))
            fractions.append([value.item() for value in checkpoint_fractions(g, s)])
            optimizer.zero_grad()
            for param, grad in zip(compress(params, used), rule.combine(g, s), strict=True):
                param.grad = grad
            used.clear()
            optimizer.step()
    return [param.detach() for param in params], fractions


class Fractions(Callback):
    """The fractions of each step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_two_pass_gradients(self, trainer: Any, module: Any, gradients: TwoGradients) -> None:
        found = checkpoint_fractions(gradients.grads, gradients.perturbed_grads)
        self.seen.append([value.item() for value in found])


def train(
    rule: Rule, micro_batches: int = 1, way: dict[str, Any] | None = None, kind: Any = Plain, **options: Any
) -> Any:
    """Final weights, the fractions of each step, and the weights' drift from rank to rank."""
    ddp: dict[str, Any] = {}
    if torch.distributed.is_initialized():
        strategy = DDPStrategy(process_group_backend="gloo", **(way or {}))
        ddp = {"devices": torch.distributed.get_world_size(), "strategy": strategy}
    with float64():
        module = with_sam(build(kind, batch_size=8), rule, **options)
        seen = Fractions()
        fit(
            module,
            accumulate_grad_batches=micro_batches,
            callbacks=[seen],
            **ddp,
        )
    return [param.detach() for param in module.parameters()], seen.seen


def train_on_ranks(rule: Rule, micro_batches: int, way: dict[str, Any], kind: Any, options: dict[str, Any]) -> Any:
    return train(rule, micro_batches, way, kind, **options)


def check(results: list[Any], expected: Any) -> None:
    for weights, fractions in results:
        assert differences(weights, results[0][0]) == []
        assert len(fractions) == len(expected[1])
        torch.testing.assert_close(torch.tensor(fractions), torch.tensor(expected[1]))
        for a, b in zip(weights, expected[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


CASES = [(1, "local", "window"), (3, "local", "window"), (3, "global", "micro_batch"), (3, "local", "micro_batch")]


@pytest.mark.parametrize(("micro_batches", "ascent", "accumulate"), CASES)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_two_processes_equal_the_loop_by_hand(
    ranks: dict[int, Ranks], rule: Rule, micro_batches: int, ascent: str, accumulate: str
) -> None:
    options = {"ascent": ascent, "accumulate": accumulate}
    results = ranks[2].run(train_on_ranks, rule, micro_batches, {}, Plain, options)
    check(results, hand_loop(rule, 2, micro_batches, ascent, accumulate))
    # They are not what the default gives: the options do something.
    default = hand_loop(rule, 1, 1, "global", "window") if micro_batches == 1 else train(rule, micro_batches)
    assert differences(results[0][0], default[0]) != []


@pytest.mark.parametrize(("rule", "micro_batches"), [*((rule, 3) for rule in RULES), (USAM(0.3), 2)], ids=repr)
def test_micro_batches_on_one_process_equal_the_loop_by_hand(rule: Rule, micro_batches: int) -> None:
    expected = hand_loop(rule, 1, micro_batches, "global", "micro_batch")
    check([train(rule, micro_batches, accumulate="micro_batch")], expected)


WAYS: dict[str, dict[str, Any]] = {
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.0001},
}


@pytest.mark.parametrize(("micro_batches", "ascent", "accumulate"), CASES)
@pytest.mark.parametrize("way", WAYS)
def test_options_of_ddp_do_not_matter(
    ranks: dict[int, Ranks], way: str, micro_batches: int, ascent: str, accumulate: str
) -> None:
    """With `Wide`, where ranks and micro-batches differ in which parameters they use, if DDP is told to look."""
    kind = Wide if way == "find_unused_parameters" else Plain
    rule = SAME((1, 4), 2.0, 0.3)
    options = {"ascent": ascent, "accumulate": accumulate}
    results = ranks[2].run(train_on_ranks, rule, micro_batches, WAYS[way], kind, options)
    check(results, hand_loop(rule, 2, micro_batches, ascent, accumulate, kind))


class ByHand(Plain):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(self, SAMMixin):
            return self.two_pass_step(lambda: Plain.training_step(self, batch, batch_idx), self.optimizers())
        return super().training_step(batch, batch_idx)


def test_local_ascent_by_hand_is_that_of_the_automatic_route(ranks: dict[int, Ranks]) -> None:
    for rule in (SAM(0.3), SAME((1, 4), 2.0, 0.3)):
        by_hand = ranks[2].run(train_on_ranks, rule, 1, {}, ByHand, {"ascent": "local"})
        check(by_hand, hand_loop(rule, 2, 1, "local", "window"))


class Centred(Everything):
    """Its forward reads a buffer in which each rank gathers its own batches, and which DDP broadcasts now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self.centre
        if self.training:
            self.centre = self.centre.lerp(x.mean(dim=0).detach(), 0.5)
        return super().forward(centred)


def observe(rule: Rule | None, micro_batches: int, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that can be observed, with batch statistics, dropout and random state that differ by rank."""
    rank = torch.distributed.get_rank()
    size = torch.distributed.get_world_size()
    module = build(Centred)
    if rule is not None:
        module = with_sam(module, rule, **options)
    module.nested["rank"] = rank
    with tempfile.TemporaryDirectory() as folder:
        found = observed_fit(
            module,
            Path(folder),
            accumulate_grad_batches=micro_batches,
            save=rank == 0,
            devices=size,
            strategy=DDPStrategy(process_group_backend="gloo"),
        )
    found["attributes"].pop("two_pass", None)
    return found


@pytest.mark.parametrize(("micro_batches", "ascent", "accumulate"), CASES)
def test_rho_zero_is_plain_training_whatever_the_options(
    ranks: dict[int, Ranks], micro_batches: int, ascent: str, accumulate: str
) -> None:
    """Bit for bit: what is summed up in another order is the same, with two ranks and s = g."""
    options = {"ascent": ascent, "accumulate": accumulate}
    plain = ranks[2].run(observe, None, micro_batches, {})
    forced = ranks[2].run(observe, SAM(0.0), micro_batches, options)
    assert differences(plain, forced) == []


def drift(rule: Rule, options: dict[str, Any]) -> list[Tensor]:
    module = with_sam(build(Everything), rule, **options)
    made = fit(
        module, max_epochs=17, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), limit_val_batches=0
    )
    assert made.global_step == 102
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("ascent", ["global", "local"])
def test_ranks_stay_bit_identical_over_100_steps(ranks: dict[int, Ranks], ascent: str) -> None:
    """BatchNorm in training mode, dropout: every rank goes its own way, but for the weights."""
    results = ranks[2].run(drift, SAME(1, 2.0, 0.3), {"ascent": ascent})
    assert differences(results[0], results[1]) == []


def train_with_a_static_graph(options: dict[str, Any]) -> None:
    # Gradients stay on their process where they accumulate, and at every step where e is each process's own.
    for micro_batches in (3, 1) if options == {"ascent": "local"} else (3,):
        with pytest.raises(RuntimeError, match=r"static_graph=True .*Leave static_graph out"):
            train(SAM(0.3), micro_batches, {"static_graph": True}, **options)


@pytest.mark.parametrize("options", [{"ascent": "local"}, {"accumulate": "micro_batch"}, {}], ids=repr)
def test_a_static_graph_has_to_synchronize_its_first_backward(ranks: dict[int, Ranks], options: dict[str, Any]) -> None:
    ranks[2].run(train_with_a_static_graph, options)
