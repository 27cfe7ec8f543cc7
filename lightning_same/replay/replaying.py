"""Whether the forward that runs now is a repeated one."""

from contextlib import AbstractContextManager

from typing_extensions import override

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


class _Replay(AbstractContextManager[None]):
    @override
    def __enter__(self) -> None:
        global _depth
        _depth += 1

    @override
    def __exit__(self, *error: object) -> None:
        global _depth
        _depth -= 1


_REPLAY = _Replay()


def as_replay() -> AbstractContextManager[None]:
    """Forwards in this context are repeated ones."""
    return _REPLAY
