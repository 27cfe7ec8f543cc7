"""What perturbations, combinations, timings and rules have in common: small values, built from plain arguments."""

import inspect
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar


class Settings:
    """A value that is shown and compared by the arguments of its constructor.

    The constructor of a subclass stores every argument under the argument's own name, as scikit-learn's estimators do;
    ``repr``, ``==`` and ``hash`` follow from that. Parts hold settings only, never what a run accumulates, so that one
    instance may serve as the class attribute of many modules. Treat them as immutable: replace, do not edit.
    """

    unsaid: ClassVar[Mapping[str, Any]] = {}
    """What ``repr`` takes for granted: arguments that are left out while they have this value."""

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments and their values, in the order of the signature."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        said = {name: value for name, value in self.arguments().items() if self.unsaid.get(name) != value}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and type(self) is type(other) and self.arguments() == other.arguments()

    def __hash__(self) -> int:
        return hash((type(self), *self.arguments().values()))


def check_number(
    owner: object,
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return ``value`` if it is a finite number within the bounds.

    Raises:
        ValueError: names the owner, the argument, what was expected and what was got.
    """
    if not (is_finite(value) and at_least <= value <= at_most and above < value < below):
        bounds = [f">= {at_least:g}"] * (at_least > -math.inf)
        bounds += [f"> {above:g}"] * (above > -math.inf)
        bounds += [f"<= {at_most:g}"] * (at_most < math.inf)
        bounds += [f"< {below:g}"] * (below < math.inf)
        expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
        raise ValueError(f"{type(owner).__name__}: `{name}` must be {expected}, got {value!r}.")
    return float(value)


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a number, and neither infinite nor NaN."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_int(owner: object, name: str, value: Any, *, at_least: int) -> int:
    """Return ``value`` if it is an integer of at least ``at_least``.

    Raises:
        ValueError: names the owner, the argument, what was expected and what was got.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{type(owner).__name__}: `{name}` must be a whole number >= {at_least}, got {value!r}.")
    return int(value)
