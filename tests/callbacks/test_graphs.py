"""The monitors on graphs that leave parameters out: unused ones, strangers, reentrant checkpoints."""

from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, fit
from support.monitored import MONITORS, NORMS, STEP, rows_of
from support.nets import Plain, build, float64
from support.ranks import Ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_same import SAM, GradientNormMonitor, ReplayCheck, with_sam


class HeadOnly(Plain):
    """The optimizer steps the last layer alone; the first can be trained too."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layers[2].parameters(), lr=0.1)


class Idle(Plain):
    """The optimizer steps a layer that no batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(20, 20)


class Loose(Plain):
    """The optimizer steps a tensor that is no parameter of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loose = [torch.full((3,), 0.5, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.loose[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.parameters(), *self.loose], lr=0.1)


class Checkpointed(Plain):
    """A reentrant activation checkpoint: what it calls is not in the graph."""

    hits: ClassVar = [0]
    """Of the class, or it would be put back with the module's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(10, 10)

    def on_fit_start(self) -> None:
        def heard(_: Tensor) -> None:
            self.hits[0] += 1

        for param in self.parameters():
            param.register_post_accumulate_grad_hook(heard)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[1](self.layers[0](x))
        return self.layers[2](checkpoint(lambda z: torch.tanh(self.middle(z)), h, use_reentrant=True))


class CheckpointedFirst(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda z: torch.tanh(self.layers[0](z)), x.requires_grad_(), use_reentrant=True)
        return self.layers[2](torch.tanh(self.middle(h)))


def first_row(kind: Any, mixed: bool) -> dict[str, float]:
    with float64():
        options: Any = {}
        if torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
            unused = not issubclass(kind, Checkpointed)
            ddp = DDPStrategy(process_group_backend="gloo", find_unused_parameters=unused)
            options = {"devices": size, "strategy": ddp}
        module = with_sam(build(kind), SAM(0.3)) if mixed else build(kind)
        rows = rows_of(module, *(monitor(rho=0.3) for monitor in MONITORS), max_steps=1, **options)
    return rows[0][1] if rows else {}


@pytest.mark.parametrize("kind", [Plain, HeadOnly, Idle, Loose, Checkpointed, CheckpointedFirst])
def test_a_plain_module_and_one_with_a_rule_are_measured_alike(kind: Any) -> None:
    """Over the parameters that the optimizer steps and the batch reaches."""
    plain, mixed = first_row(kind, False), first_row(kind, True)
    assert {*NORMS, *STEP, "ckpt_fraction/rest"} < plain.keys()
    # The step of a plain module is g, that of the rule s.
    assert plain.pop(STEP[0]) == pytest.approx(plain["grad_norm/base"])
    assert mixed.pop(STEP[0]) == pytest.approx(plain["grad_norm/perturbed"])
    assert plain == pytest.approx(mixed)


@pytest.mark.parametrize("kind", [HeadOnly, Idle, Checkpointed])
def test_on_two_processes_they_are_measured_alike(ranks: dict[int, Ranks], kind: Any) -> None:
    for mixed in (False, True):
        assert ranks[2].run(first_row, kind, mixed) == [pytest.approx(first_row(kind, mixed)), {}]


@pytest.mark.parametrize("kind", [Checkpointed, CheckpointedFirst])
def test_beside_a_reentrant_checkpoint_they_disturb_nothing(kind: Any) -> None:
    ends = []
    for monitors in ([], [GradientNormMonitor()]):
        module = build(kind)
        kind.hits[0] = 0
        fit(module, callbacks=list(monitors), accumulate_grad_batches=2)
        ends.append([kind.hits[0], dict(module.state_dict()), [param.grad for param in module.parameters()]])
    assert ends[0][0] == 6 * 12
    assert differences(*ends) == []


@pytest.mark.parametrize("monitor", [GradientNormMonitor, ReplayCheck])
def test_beside_a_reentrant_checkpoint_gradients_are_as_they_were(monitor: Any) -> None:
    seen: list[list[Tensor | None]] = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            seen.append([param.grad for param in module.parameters()])

    fit(build(Checkpointed), callbacks=[Looks(), monitor(every_n_steps=1), Looks()], max_steps=2)
    assert len(seen) == 4
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert all(one is other for one, other in zip(before, after, strict=True))


def checkpointed_on_a_rank(monitored: bool) -> Any:
    module = build(Checkpointed)
    options: Any = {"gradient_as_bucket_view": True, "process_group_backend": "gloo"}
    size = torch.distributed.get_world_size()
    monitors = [GradientNormMonitor()] if monitored else []
    fit(module, callbacks=list(monitors), devices=size, strategy=DDPStrategy(**options), accumulate_grad_batches=2)
    return dict(module.state_dict())


def test_on_two_processes_beside_a_reentrant_checkpoint_they_disturb_nothing(ranks: dict[int, Ranks]) -> None:
    without, with_monitor = (ranks[2].run(checkpointed_on_a_rank, monitored) for monitored in (False, True))
    assert differences(without, with_monitor) == []


@pytest.mark.parametrize("mixed", [True, False])
def test_a_tensor_that_the_module_does_not_know_has_no_values_of_its_own(mixed: bool) -> None:
    module = with_sam(build(Loose), SAM(0.3)) if mixed else build(Loose)
    row = rows_of(module, *(monitor(per_layer=True) for monitor in MONITORS), max_steps=1)[0][1]
    named = {name for name, _ in module.named_parameters()}
    for head, tail in (("grad_norm_layer", "/base"), ("grad_norm_layer", "/step"), ("ckpt_fraction_layer", "/rest")):
        assert {f"{head}/{name}{tail}" for name in named} == {k for k in row if k.startswith(head) and k.endswith(tail)}
    assert {f"weight_norm_layer/{name}" for name in named} == {k for k in row if k.startswith("weight_norm_layer")}
