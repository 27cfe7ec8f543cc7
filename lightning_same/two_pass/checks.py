"""What cannot work under two passes, refused before training with a word on what to do instead."""

import inspect
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_same.rules.base import Rule
from lightning_same.rules.settings import LARGEST_RADIUS, is_finite
from lightning_same.rules.timing import Timing
from lightning_same.trainer.distributed import ddp_model
from lightning_same.two_pass.module import TwoPassModule
from lightning_same.two_pass.options import TwoPassOptions


def check_module(module: pl.LightningModule, trainer: pl.Trainer) -> None:
    """Check a module that is about to be trained.

    Args:
        module: the mixed module.
        trainer: its Trainer, after the strategy's set-up.

    Raises:
        TypeError: if ``module.sam`` is not a rule.
        ValueError: if an optimizer has nothing to train, or a group's ``rho`` is no radius.
        RuntimeError: if something in the set-up excludes two passes.
    """
    check_free_names(module)
    rule = getattr(module, "sam", None)
    name = type(module).__name__
    check_rule(rule, name)
    if rule is None:
        return
    options: Any = module.two_pass
    check_options(options, rule, name)
    _check_strategy(trainer, options, name)
    _check_static_graph(trainer, options, name)
    if any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse for layer in module.modules()):
        raise RuntimeError(f"{name}: sparse gradients cannot be split. Make the embedding with sparse=False.")
    if not module.automatic_optimization:
        return
    _check_backward(module, name)
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise RuntimeError(
            f"{name}.training_step takes `dataloader_iter`, and an iterator cannot be replayed. Take `batch` instead."
        )
    if not any(group["params"] for optimizer in trainer.optimizers for group in optimizer.param_groups):
        raise RuntimeError(
            f"{name}.configure_optimizers returns no optimizer, so there is no step for {rule!r}. Return one, or set"
            " `sam = None`."
        )
    check_optimizer(trainer.optimizers[0], module)


def check_inner_modules(module: pl.LightningModule) -> None:
    """Check that no module inside the one that is trained has a rule, which nobody would follow.

    Raises:
        RuntimeError: if one has.
    """
    for path, inner in module.named_modules():
        rule = getattr(inner, "sam", None)
        if inner is not module and isinstance(inner, TwoPassModule) and isinstance(rule, Rule):
            raise RuntimeError(
                f"{type(module).__name__}.{path} has the rule {rule!r}, but the steps are those of the"
                f" {type(module).__name__} around it. Give the rule to the module that the Trainer fits."
            )


def check_free_names(module_or_class: pl.LightningModule | type[pl.LightningModule]) -> None:
    """Check that the names ``sam`` and ``two_pass`` are free for the rule and its options.

    Raises:
        TypeError: if one is a submodule, parameter or buffer, or something else of the class.
    """
    kind = module_or_class if isinstance(module_or_class, type) else type(module_or_class)
    for name, what, instead in (("sam", "rule", "segment_anything"), ("two_pass", "options", "two_stages")):
        taken = next((vars(cls)[name] for cls in kind.__mro__ if name in vars(cls)), None)
        if not isinstance(module_or_class, type):
            registered = (module_or_class._modules, module_or_class._parameters, module_or_class._buffers)
            taken = next((names[name] for names in registered if name in names), taken)
        if isinstance(taken, nn.Module | Tensor | property) or inspect.isfunction(taken):
            raise TypeError(
                f"{kind.__name__} uses the name `{name}` for a {type(taken).__name__}, and lightning-same needs it for"
                f" the {what}. Rename yours, for instance to `{instead}`."
            )


def check_rule(rule: Any, name: str) -> None:
    """Check the attribute ``sam``.

    Args:
        rule: its value.
        name: of the module's class, for the message.

    Raises:
        TypeError: if it is neither a rule nor None.
    """
    if rule is not None and not isinstance(rule, Rule):
        hint = f"{rule.__name__}()" if isinstance(rule, type) else "SAM(rho=0.05)"
        raise TypeError(f"{name}.sam must be a rule such as {hint}, or None; got {rule!r}.")


def check_options(options: Any, rule: Rule, name: str) -> None:
    """Check the attribute ``two_pass``.

    Args:
        options: its value.
        rule: the rule that the passes serve.
        name: of the module's class, for the message.

    Raises:
        TypeError: if it is no `TwoPassOptions`.
        ValueError: if the rule cannot be served that way.
    """
    if not isinstance(options, TwoPassOptions):
        raise TypeError(f"{name}.two_pass must be `TwoPassOptions(...)`, got {options!r}.")
    # A timing may look at g without keeping anything of it.
    waits_for_g = rule.timing.stateful or type(rule.timing).confirmed is not Timing.confirmed
    if waits_for_g and options.accumulate == "micro_batch":
        raise ValueError(
            f"{name}: {rule!r} decides by the gradient of the whole step whether to take pass two, and"
            ' accumulate="micro_batch" perturbs before that is known. Use accumulate="window", or another timing.'
        )
    if (rule.timing.stateful or rule.perturbation.stateful) and options.ascent == "local":
        raise ValueError(
            f'{name}: {rule!r} carries an average of g from step to step, and with ascent="local" every process would'
            ' have one of its own, of which only one could be saved. Use ascent="global", or another rule.'
        )
    if waits_for_g and options.ascent == "local":
        raise ValueError(
            f'{name}: {rule!r} decides by g whether to take pass two, and with ascent="local" the processes have'
            ' different g and could decide apart. Use ascent="global", or another timing.'
        )


EVALUATES_SEVERAL_TIMES = (
    "evaluates the loss several times per step by a closure, which cannot be combined with two passes. Use an optimizer"
    " that steps on `.grad`, such as SGD or AdamW, or set `sam = None`."
)


def check_trainable(optimizer: Optimizer, name: str) -> None:
    """Check, when a step begins, that there is something to train.

    Not before: callbacks such as BaseFinetuning freeze everything first and unfreeze some when an epoch begins.

    Raises:
        ValueError: if no parameter of the optimizer requires a gradient.
    """
    if not any(param.requires_grad for group in optimizer.param_groups for param in group["params"]):
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        raise ValueError(
            f"{name}: none of the {count} parameters of {type(optimizer).__name__} requires a gradient, so there"
            " is nothing to train. Unfreeze some, or set `sam = None`."
        )


def check_optimizer(optimizer: Optimizer, module: pl.LightningModule) -> None:
    """Check one optimizer.

    Raises:
        ValueError: if a group's ``rho`` is no radius, or the rule needs a momentum that it has not.
        RuntimeError: if it evaluates the loss by itself, or has complex parameters.
    """
    name, kind = type(module).__name__, type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RuntimeError(f"{name}: {kind} {EVALUATES_SEVERAL_TIMES}")
    needs_closure = closure is not None and closure.default is inspect.Parameter.empty
    if needs_closure and not module.automatic_optimization:
        raise RuntimeError(
            f"{name}: {kind}.step needs a closure, and `two_pass_step` calls it without one. Use automatic"
            " optimization, or an optimizer that steps on `.grad`, such as SGD or AdamW."
        )
    rule = getattr(module, "sam", None)
    has_momentum = any(group.get("momentum") or group.get("betas") for group in optimizer.param_groups)
    if isinstance(rule, Rule) and rule.ahead and not has_momentum:
        raise ValueError(
            f"{name}: {rule!r} perturbs along the optimizer's momentum, and {kind} has none. Use SGD(momentum=0.9),"
            " Adam or AdamW, or another rule."
        )
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if any(param.is_complex() for param in params):
        raise RuntimeError(
            f"{name}: complex parameters have no sign to split by. Keep them as real ones, by torch.view_as_real, or"
            " set `sam = None`."
        )
    for index, group in enumerate(optimizer.param_groups):
        if "rho" not in group or "rho" in optimizer.defaults:
            continue
        if not (is_finite(group["rho"]) and 0 <= group["rho"] <= LARGEST_RADIUS):
            raise ValueError(
                f"{name}: `rho` of parameter group {index} must be a finite number >= 0 and <= {LARGEST_RADIUS:g}, got"
                f" {group['rho']!r}."
            )


def _check_strategy(trainer: pl.Trainer, options: TwoPassOptions, name: str) -> None:
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        raise RuntimeError(
            f"{name}: DeepSpeed never calls the module's `backward`, where the second pass runs. Use"
            ' strategy="ddp", or set `sam = None`.'
        )
    if isinstance(strategy, FSDPStrategy):
        raise RuntimeError(
            f"{name}: FSDPStrategy flattens the parameters of a layer into one, which cannot be told apart again. Use"
            " ModelParallelStrategy, which shards each by itself (FSDP2), or set `sam = None`."
        )
    if isinstance(strategy, ModelParallelStrategy) and options.ascent == "local":
        raise RuntimeError(
            f'{name}: ModelParallelStrategy leaves no process a gradient of its own, so ascent="local" has'
            ' no meaning. Use ascent="global", or strategy="ddp".'
        )


def _check_static_graph(trainer: pl.Trainer, options: TwoPassOptions, name: str) -> None:
    ddp = ddp_model(trainer)
    accumulates = trainer.accumulate_grad_batches > 1
    if ddp is not None and ddp.static_graph and (accumulates or options.ascent == "local"):
        what = "accumulate_grad_batches > 1" if accumulates else 'ascent="local"'
        raise RuntimeError(
            f"{name}: DDP with static_graph=True synchronizes the gradients of its very first backward, and with {what}"
            " those stay on their process. Leave static_graph out."
        )


def _check_backward(module: pl.LightningModule, name: str) -> None:
    mro = type(module).__mro__
    mixin = next(cls for cls in reversed(mro) if "two_pass_step" in vars(cls))
    owner = next((cls.__name__ for cls in mro[: mro.index(mixin)] if "backward" in vars(cls)), None)
    if owner is None and "backward" in vars(module):
        owner = f"the instance of {name}"
    if owner is not None:
        raise RuntimeError(
            f"{name}: {owner} overrides `backward` in front of {mixin.__name__}, which runs the second pass there. List"
            f" the mixin first, `class {name}({mixin.__name__}, YourModule)`, with `backward` in YourModule: it is then"
            " called for both passes."
        )
