"""What a fit says of itself before its first step."""

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_same.rules.base import Rule
from lightning_same.rules.timing import EveryStep
from lightning_same.two_pass.fit import Fit


def announce(fit: Fit) -> None:
    """Log the rule, the route and the passes of a step in one line; warn if nobody has said which rule to use."""
    module, rule = fit.module, fit.module.sam
    name = type(module).__name__
    if rule is not None:
        rank_zero_info(f"{name} trains with {rule!r}: {', '.join([passes(rule), *_how(fit)])}.")
    elif not _is_set(module):
        rank_zero_warn(
            f"{name} has the mixin but no rule, so it trains without SAM. Set a rule, `sam = SAM(rho=0.05)`, or"
            " `sam = None` to say that there is none."
        )


def passes(rule: Rule) -> str:
    """How many forward and backward passes a step takes."""
    if rule.rho == 0:
        return "1 pass a step, since rho is 0"
    if rule.ahead:
        return "1 pass a step, at w + e"
    return "2 passes a step" if isinstance(rule.timing, EveryStep) else "2 passes in each step that it perturbs"


def _how(fit: Fit) -> list[str]:
    module, options, trainer = fit.module, fit.module.two_pass, fit.trainer
    how = ["automatic optimization" if module.automatic_optimization else "manual optimization"]
    if trainer.world_size > 1:
        how.append(f"{options.ascent} ascent on {trainer.world_size} processes")
    if trainer.accumulate_grad_batches > 1:
        how.append(f"perturbed once per {options.accumulate.replace('_', '-')}")
    return how


def _is_set(module: object) -> bool:
    """Whether the module or one of its classes has a value for ``sam``, None included; not the mixin itself."""
    own = [cls for cls in type(module).__mro__ if "two_pass_step" not in vars(cls)]
    return "sam" in vars(module) or any("sam" in vars(cls) for cls in own)
