"""What the variants of a study do to the gradient, and which of them are compared with which."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_same.experiments.study.plan import Run

Gains = tuple[float, float, float, float]


def pairs(reference: str, done: Sequence[Run]) -> list[tuple[Run, Run]]:
    """A run of each variant beside a run of each variant of the reference that it is compared with.

    Settings that the reference does not have are no hindrance: it is compared with all values of them.
    """
    ordered = first_runs(done)
    return [
        (run, other)
        for run in ordered
        for other in ordered
        if other.method == reference != run.method and alike(run.settings, other.settings)
    ]


def first_runs(done: Sequence[Run]) -> list[Run]:
    """One run of each variant, in the order of the study."""
    variants = {run.variant: run for run in reversed(done)}
    return [variants[name] for name in dict.fromkeys(run.variant for run in done)]


def alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether settings that both have are equal."""
    return all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


def rule_of(config: Mapping[str, Any]) -> str:
    """The name of the rule's class; empty without a rule."""
    sam = config.get("sam")
    return str(sam.get("class_path")).rpartition(".")[2] if isinstance(sam, Mapping) else ""


def arguments_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments that the rule is given."""
    sam = config.get("sam")
    arguments = sam.get("init_args") if isinstance(sam, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def rho_of(config: Mapping[str, Any]) -> float | None:
    """The radius, 0 without a rule; None if it is a schedule or not given."""
    if not rule_of(config):
        return 0.0
    return _number(arguments_of(config).get("rho"))


def gains_of(config: Mapping[str, Any]) -> Gains | None:
    """What the rule multiplies s by on the four checkpoints; None where that is not all it does, or changes."""
    given = arguments_of(config)
    if not set(given) <= {"ckpt", "condition", "alpha", "warmup_epochs", "rho", *(f"ckpt{k}" for k in range(1, 5))}:
        return None
    match rule_of(config):
        case "SAM":
            return 1.0, 1.0, 1.0, 1.0
        case "SAME":
            ckpt, condition = given.get("ckpt", 1), _number(given.get("condition", 2.0))
            chosen = [ckpt] if isinstance(ckpt, int) else ckpt
            gains = [condition if k in chosen else 1.0 for k in range(1, 5)]
        case "CustomSAME":
            c = _number(given.get("condition", 2.0))
            gains = [c, 1.0, None if c is None else 1 / c, c]
        case "SANER" if not given.get("warmup_epochs"):
            alpha = _number(given.get("alpha", 0.5))
            gains = [1.0, None if alpha is None else 1 - alpha, 1.0, 1.0]
        case "CheckpointGains":
            gains = [_number(given.get(f"ckpt{k}", 1.0)) for k in range(1, 5)]
        case _:
            return None
    one, two, three, four = gains
    if one is None or two is None or three is None or four is None:
        return None
    return one, two, three, four


def amplified(config: Mapping[str, Any]) -> int:
    """The one checkpoint that a run amplifies, which is what the notes have judged; 0 if it does something else."""
    changed = [(k, gain) for k, gain in enumerate(gains_of(config) or (), start=1) if gain != 1]
    return changed[0][0] if len(changed) == 1 and changed[0][1] > 1 else 0


def is_sam(config: Mapping[str, Any]) -> bool:
    """Whether a run's step is SAM's."""
    return gains_of(config) == (1.0, 1.0, 1.0, 1.0)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else None
