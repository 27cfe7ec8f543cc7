"""How the two passes run, as opposed to which rule they serve."""

from typing import Literal, get_args

from lightning_same.rules.settings import Settings

Ascent = Literal["global", "local"]
Accumulate = Literal["window", "micro_batch"]
NonFinite = Literal["propagate", "skip"]

CHOICES = {"ascent": get_args(Ascent), "accumulate": get_args(Accumulate), "nonfinite": get_args(NonFinite)}


class TwoPassOptions(Settings):
    r"""How the two passes run with several processes, several micro-batches and non-finite gradients.

    Args:
        ascent: whose gradient perturbs the weights under DDP. ``"global"``: the all-reduced gradient, so that the
            number of processes does not matter; two all-reduces a step. ``"local"``: each process perturbs along the
            gradient of its own share of the batch, known as m-SAM (Foret et al. 2021, section 4.1), which often
            generalises better. Rules that step with s alone, such as SAM, then need one all-reduce. Rules that
            compare s with g, such as SAME, need two, and g is reduced while pass two computes. Gradients of
            parameters that the optimizer does not step are not reduced. On one process both are the same.
        accumulate: how often the weights are perturbed when gradients accumulate over micro-batches. ``"window"``:
            once, along the accumulated gradient, which equals one large batch. Keeps the window's batches and, for
            each, the buffers before it. ``"micro_batch"``: once for each micro-batch, along its own gradient (of all
            processes, or of one, as ``ascent`` says), which is m-SAM over micro-batches; g and s are the means over
            the window, and the combination acts on them once. Keeps one batch and one more gradient, two for rules
            that compare s with g. With ``ascent="global"`` the gradient of every micro-batch is all-reduced. Applies
            to automatic optimization only.
        nonfinite: what happens to a step with an inf or NaN in a gradient if there is no loss scaler. ``"propagate"``:
            the optimizer steps with it, as in Lightning without SAM. ``"skip"``: all processes drop the step.
            Weights, the optimizer's state and the rule's state stay as they were, the gradients are set to None,
            schedulers and ``global_step`` go on, and ``sam/skipped_steps`` counts. Costs one wait for the device per
            step. Buffers, such as BatchNorm's averages, have seen the batch. With a loss scaler, the scaler skips.
        check_replay: on the first step of a fit that perturbs, replay pass one at w once and warn if loss or gradient
            differ, naming what is not put back. Costs one forward-backward pass per fit, two where they differ. In
            that step it is also told if the gradient is inf or NaN at w + e and not at w: the radius is too large.

    Raises:
        ValueError: if an argument is not one of its choices.
    """

    def __init__(
        self,
        ascent: Ascent = "global",
        accumulate: Accumulate = "window",
        nonfinite: NonFinite = "propagate",
        check_replay: bool = True,
    ) -> None:
        self.ascent = ascent
        self.accumulate = accumulate
        self.nonfinite = nonfinite
        self.check_replay = check_replay
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"TwoPassOptions: `{name}` must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                )
        if not isinstance(check_replay, bool):
            raise ValueError(f"TwoPassOptions: `check_replay` must be True or False, got {check_replay!r}.")
