"""How the two passes run, as opposed to which rule they serve."""

from typing import Literal, get_args

from lightning_same.rules.settings import Settings

Ascent = Literal["global", "local"]
Accumulate = Literal["window", "micro_batch"]
NonFinite = Literal["propagate", "skip"]

CHOICES = {"ascent": get_args(Ascent), "accumulate": get_args(Accumulate), "nonfinite": get_args(NonFinite)}


class TwoPassOptions(Settings):
    r"""How the two passes run over several processes, several micro-batches and numbers that are not finite.

    Args:
        ascent: whose gradient the perturbation follows under DDP. ``"global"``: the mean over all processes, so that
            their number does not matter; two gradients go over the wire. ``"local"``: each process perturbs by the
            gradient of its own share of the batch, known as m-SAM (Foret et al. 2021, section 4.1), which often
            generalises better, and the reduction before pass two falls away. One gradient goes over the wire for
            rules that step with s alone, such as SAM, and two for those that compare s with g, such as SAME, where g
            is reduced while pass two computes. Gradients of parameters that the optimizer does not step stay their
            process's own. On one process both are the same.
        accumulate: what is perturbed when gradients accumulate over micro-batches. ``"window"``: the weights, once, by
            the gradient of them all, which equals one large batch. Holds on to the window's batches and, for each,
            to the buffers before it. ``"micro_batch"``: the weights anew for every micro-batch, by its own gradient
            (of all processes, or of one, as ``ascent`` says), which is m-SAM over micro-batches; g and s are the means
            over the window, and the combination acts on them once. Holds on to one batch, and to one gradient more, two
            for rules that compare s with g. With ``ascent="global"`` and several processes every micro-batch's gradient
            goes over the wire. Only matters to automatic optimization.
        nonfinite: what happens to a step with an inf or NaN in it where no loss scaler takes care. ``"propagate"``:
            what Lightning does without SAM: the optimizer steps with it. ``"skip"``: the step is dropped, on all
            processes. Weights, the optimizer's state and what the rule carries stay as they were, the gradients are set
            to None, schedulers and ``global_step`` go on, and ``sam/skipped_steps`` counts. Costs one wait for the
            device per step. Buffers, such as BatchNorm's averages, have seen the batch. With a loss scaler, the scaler
            skips.

    Raises:
        ValueError: if an argument is not one of its choices.
    """

    def __init__(
        self, ascent: Ascent = "global", accumulate: Accumulate = "window", nonfinite: NonFinite = "propagate"
    ) -> None:
        self.ascent = ascent
        self.accumulate = accumulate
        self.nonfinite = nonfinite
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"TwoPassOptions: `{name}` must be {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                )
