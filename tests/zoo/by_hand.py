"""SAM in plain PyTorch: no Trainer, and nothing of this package."""

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from support.nets import seed_all
from torch import Tensor

from zoo.fits import EPOCHS, Batches, random_states, set_random_states


class ByHand(NamedTuple):
    """A training by hand.

    Attributes:
        state_dict: at its end.
        norms: those of the gradients at w and at w + e, for each step.
    """

    state_dict: dict[str, Tensor]
    norms: list[tuple[float, float]]


def by_hand(module: pl.LightningModule, batches: Batches, rho: float, window: int = 1) -> ByHand:
    """Train a module with SAM.

    Pass two is taken by deep copies of the module, made before pass one and moved by e. So nothing needs to be put back
    but the random numbers.

    Args:
        module: the module.
        batches: those of an epoch; None if it brings its own.
        rho: radius.
        window: micro-batches of one step.
    """
    seed_all(1)
    norms = []
    with stand_in_trainer(module, 0 if batches is None else len(batches)) as made:
        optimizer, schedulers = optimizer_and_schedulers(module)
        made.optimizers = [optimizer]
        trained = {id(param) for group in optimizer.param_groups for param in group["params"]}
        module.train()
        for made.current_epoch in range(EPOCHS):
            given = list(enumerate(module.train_dataloader() if batches is None else batches))
            for start in range(0, len(given), window):
                norms.append(two_passes(module, given[start : start + window], window, rho, trained))
                module.on_after_backward()
                optimizer.step()
                made.global_step += 1
                step_schedulers(module, schedulers, "step")
                module.on_train_batch_end(None, *reversed(given[start]))
            module.on_train_epoch_end()
            step_schedulers(module, schedulers, "epoch")
    return ByHand({name: value.detach().clone() for name, value in module.state_dict().items()}, norms)


def two_passes(
    module: pl.LightningModule, given: Sequence[tuple[int, Any]], window: int, rho: float, trained: Collection[int]
) -> tuple[float, float]:
    """Leave the gradient at w + e in ``.grad``; returns the norms of both."""
    module.zero_grad()
    before = []
    for index, batch in given:
        before.append((twin_of(module), random_states()))
        backward(module, batch, index, window)
    after = random_states()
    params = {name: param for name, param in module.named_parameters() if id(param) in trained}
    base = {name: param.grad for name, param in params.items() if param.grad is not None}
    norm = norm_of(base.values())
    for param in params.values():
        param.grad = None
    for (index, batch), (twin, states) in zip(given, before, strict=True):
        twin.zero_grad()
        with torch.no_grad():
            for name, param in twin.named_parameters():
                if name in base:
                    param += rho / norm * base[name]
        set_random_states(states)
        backward(twin, batch, index, window)
        grads = {name: param.grad for name, param in twin.named_parameters()}
        for name, param in params.items():
            if grads[name] is not None:
                param.grad = grads[name] if param.grad is None else param.grad + grads[name]
    set_random_states(after)
    return norm, norm_of(param.grad for param in params.values() if param.grad is not None)


def backward(module: pl.LightningModule, batch: Any, index: int, window: int) -> None:
    output: Any = module.training_step(copy.deepcopy(batch), index)
    loss = output if isinstance(output, Tensor) else output["loss"]
    (loss / window).backward()


def twin_of(module: pl.LightningModule) -> pl.LightningModule:
    """A deep copy; of the results of earlier steps that the module keeps, without their graphs."""
    memo: dict[int, Any] = {}
    waiting = [value for inner in module.modules() for value in vars(inner).values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    twin = copy.deepcopy(module, memo)
    twin._trainer = module._trainer  # Which a copy leaves out.
    return twin


def norm_of(grads: Any) -> float:
    return torch.cat([grad.flatten() for grad in grads]).norm().item()


@contextmanager
def stand_in_trainer(module: pl.LightningModule, batches: int) -> Iterator[Any]:
    """What training steps ask of a Trainer."""
    made = SimpleNamespace(
        current_epoch=0,
        global_step=0,
        max_epochs=EPOCHS,
        num_training_batches=batches,
        limit_train_batches=1.0,
        train_dataloader=[],
        callbacks=[],
        optimizers=[],
        strategy=None,
        world_size=1,
        state=SimpleNamespace(stage=pl.trainer.states.RunningStage.TRAINING),
    )
    module._trainer = made
    object.__setattr__(module, "log", _nothing)
    try:
        yield made
    finally:
        module._trainer = None
        object.__delattr__(module, "log")


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def optimizer_and_schedulers(module: pl.LightningModule) -> tuple[torch.optim.Optimizer, list[dict[str, Any]]]:
    """What `configure_optimizers` returns, in whatever form."""
    made: Any = module.configure_optimizers()
    if isinstance(made, dict):
        made = ([made["optimizer"]], [made["lr_scheduler"]] if "lr_scheduler" in made else [])
    if isinstance(made, torch.optim.Optimizer):
        made = [made]
    optimizers, schedulers = made if isinstance(made, tuple) else (made, [])
    (optimizer,) = optimizers
    return optimizer, [each if isinstance(each, dict) else {"scheduler": each} for each in schedulers]


def step_schedulers(module: pl.LightningModule, schedulers: Sequence[dict[str, Any]], when: str) -> None:
    for each in schedulers:
        if each.get("interval", "epoch") == when:
            module.lr_scheduler_step(each["scheduler"], None)
