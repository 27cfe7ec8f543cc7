"""What rules and their parts have in common: they are values, built from plain arguments that are checked."""

import inspect
import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

LARGEST = 3.4028234663852886e38
"""The largest finite float32."""

LARGEST_RADIUS = 1.8e19
"""The largest radius: float32 still holds its square, which a norm of e is the root of."""


class Settings:
    """A value that is shown and compared by the arguments of its constructor.

    The constructor of a subclass stores every argument under the argument's own name, as scikit-learn's estimators do;
    ``repr``, ``==`` and ``hash`` follow from that. It holds settings only, never what a run accumulates, so that one
    instance may be the class attribute of many modules. Treat it as immutable: replace it, do not edit it.

    Example:
        >>> class Scaled(Settings):
        ...     def __init__(self, factor: float, offset: float = 0.0) -> None:
        ...         self.factor, self.offset = factor, offset
        >>> Scaled(2.0)
        Scaled(factor=2.0, offset=0.0)
        >>> Scaled(2.0) == Scaled(2.0, offset=0.0)
        True
    """

    hidden_defaults: ClassVar[Mapping[str, Any]] = {}
    """Arguments that ``repr`` leaves out while they have this value."""

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments and their values, in the order of the signature."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.arguments().items() if self.hidden_defaults.get(name) != value}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

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
    """Return ``value`` as a float if float32 can hold it and it is within the bounds.

    Args:
        owner: the object that is constructed; its class is named in the error.
        name: of the argument.
        value: what the user has passed.
        at_least: lower bound.
        above: lower bound that is excluded.
        at_most: upper bound.
        below: upper bound that is excluded.

    Raises:
        ValueError: names the owner, the argument, what was expected and what was got.

    Example:
        >>> check_number(Settings(), "rho", 1, at_least=0)
        1.0
        >>> check_number(Settings(), "rho", -1, at_least=0)
        Traceback (most recent call last):
        ValueError: Settings: `rho` must be a finite number >= 0, got -1.
    """
    if not (is_finite(value) and at_least <= value <= at_most and above < value < below):
        bounds = [f">= {at_least:g}"] * (at_least > -math.inf)
        bounds += [f"> {above:g}"] * (above > -math.inf)
        bounds += [f"<= {at_most:g}"] * (at_most < math.inf)
        bounds += [f"< {below:g}"] * (below < math.inf)
        too_large = at_most == math.inf and _is_number(value) and LARGEST < abs(value) < math.inf
        bounds += [f"within float32's range of +-{LARGEST:.3g}"] * too_large
        expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
        raise ValueError(f"{type(owner).__name__}: `{name}` must be {expected}, got {_shown(value)}.")
    return float(value)


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a number that float32 can hold: not infinite, not NaN, and not too large."""
    return _is_number(value) and bool(abs(value) <= LARGEST)


def check_int(owner: object, name: str, value: Any, *, at_least: int) -> int:
    """Return ``value`` if it is an integer from ``at_least`` to 2^63 - 1.

    Args:
        owner: the object that is constructed; its class is named in the error.
        name: of the argument.
        value: what the user has passed.
        at_least: lower bound.

    Raises:
        ValueError: names the owner, the argument, what was expected and what was got.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not at_least <= int(value) <= sys.maxsize:
        raise ValueError(f"{type(owner).__name__}: `{name}` must be a whole number >= {at_least}, got {_shown(value)}.")
    return int(value)


def check_function(owner: object, name: str, value: Any) -> None:
    """Refuse what cannot be called.

    Args:
        owner: the object that is constructed; its class is named in the error.
        name: of the argument.
        value: what the user has passed; None is no function and is left to the owner.

    Raises:
        ValueError: names the owner, the argument, what was expected and what was got.
    """
    if value is not None and not callable(value):
        raise ValueError(f"{type(owner).__name__}: `{name}` must be a function or None, got {_shown(value)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """``value`` in an error message. Python refuses to print very long integers."""
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
