"""On the first step of a fit that perturbs: whether a replay of pass one at w is pass one."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_same.gradients.grads import set_grads
from lightning_same.gradients.sharding import local
from lightning_same.replay.fingerprint import fingerprint
from lightning_same.replay.modules import modules_of, parameters_of
from lightning_same.replay.report import Outcome, States, compare
from lightning_same.replay.undisturbed import undisturbed
from lightning_same.trainer.distributed import reshard, sum_over_processes, unsynchronized
from lightning_same.two_pass.gradient_store import backward_overwrites_grads
from lightning_same.two_pass.step import TwoPassStep


def check_replay(
    step: TwoPassStep,
    start: Mapping[str, str],
    rewind: Callable[[], None],
    replay: Callable[[], Sequence[Tensor]],
    losses: Sequence[Tensor],
) -> None:
    """Replay pass one before anything moves, and warn if it is not the same.

    Args:
        step: the step, after pass one; ``.grad`` holds g.
        start: `fingerprint` of the module before pass one.
        rewind: puts the state before pass one back.
        replay: repeats the forwards and backwards of pass one; returns the losses.
        losses: those of pass one.
    """
    module, trainer = step.module, step.trainer
    modules = modules_of(module)
    reshard(modules)
    params = list(dict.fromkeys(parameters_of(modules)))
    left = fingerprint(module)
    first = Outcome(losses, [_copy(param.grad) for param in params])
    copies = backward_overwrites_grads(trainer)
    grads = {param: _copy(param.grad) if copies else param.grad for param in params}
    replays: list[Outcome] = []
    put_back: Mapping[str, str] = {}

    def again() -> Outcome:
        set_grads(dict.fromkeys(params))
        with unsynchronized(trainer.strategy) if step.is_local else nullcontext():
            repeated = replay()
        return Outcome(repeated, [_copy(param.grad) for param in params])

    step.sam_pass = 2
    try:
        with (
            undisturbed(trainer, module, step.fit.stepped_parameters(), in_step=True) as here,
            step.weights_as_before(here),
        ):
            rewind()
            put_back = fingerprint(module)
            replays.append(again())
            # The processes decide together: another replay takes part in their reductions.
            differs = torch.tensor(float(not first.equals(replays[0])), device=module.device)
            if sum_over_processes(trainer, differs).item():
                rewind()
                replays.append(again())
    finally:
        step.sam_pass = 0
        set_grads(grads)
    report = compare(first, replays, States(start, left, put_back, fingerprint(module)))
    if not report.is_right:
        warnings.warn(report.message(type(module).__name__), stacklevel=2)
    elif not report.exact:
        rank_zero_info(report.message(type(module).__name__))


def _copy(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else local(grad).detach().clone()
