"""Whether the forward that runs now is a repeated one."""

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


def replaying() -> bool:
    """Whether training_step runs for pass two, or for a monitor beside training, and not for training itself.

    Ask it before a side effect that cannot be undone: a step of an environment, a line in a file, a draw from a
    generator in an object of your own. For modules with `SAMMixin` and for all others.

    Examples:
        >>> replaying()
        False
    """
    return _depth > 0


@contextmanager
def as_replay() -> Iterator[None]:
    """Forwards in this context are repeated ones."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
