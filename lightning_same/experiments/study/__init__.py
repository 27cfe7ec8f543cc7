"""The study: many runs of ``lightning-same fit``, and what they say together."""

from collections.abc import Sequence

from lightning_same.experiments.study.options import parsed


def main(args: Sequence[str]) -> None:
    """Run a study, or report on one.

    Args:
        args: what follows ``lightning-same study``.

    Raises:
        SystemExit: as `command.execute` does, and 2 for options that make no sense.
    """
    options = parsed(args)
    from lightning_same.experiments.study.command import execute

    execute(options)
