"""The command ``lightning-same``, also as ``python -m lightning_same``: which part of the package serves which word."""

import os
import sys
from collections.abc import Sequence

MORE = (
    "Further commands, each with --help: plot draws the fractions, norms and sharpness that a run has logged; sharpness"
    " measures the curvature of a model in a checkpoint file; study trains methods x seeds and reports on them."
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: instead of the command line's.
    """
    words = list(sys.argv[1:] if args is None else args)
    # As `python -m` does: the user's own modules are named from where the command is given.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    match words:
        case ["plot", *rest]:
            from lightning_same.cli.plot import main as plot

            plot(rest)
        case ["sharpness", *rest]:
            from lightning_same.cli.sharpness import main as sharpness

            sharpness(rest)
        case ["study", *rest]:
            from lightning_same.experiments.study import main as study

            study(rest)
        case _:
            from lightning_same.cli.fit import SAMCLI

            # Given a list, LightningCLI warns that the command line's is not read.
            SAMCLI(args=None if args is None else words, parser_kwargs={"prog": "lightning-same", "epilog": MORE})


if __name__ == "__main__":
    main()
