"""The command ``lightning-same``, also as ``python -m lightning_same``: which part of the package serves which word."""

import difflib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "fit": "train a model: --model, --data, --trainer and, for two passes, --sam; or -c CONFIG",
    "validate": "run the validation loop of a model",
    "test": "run the test loop of a model",
    "predict": "run a model's predictions",
    "plot": "draw the fractions, norms and sharpness that runs have logged",
    "sharpness": "measure the curvature of a model in a checkpoint file",
    "study": "train methods x seeds, and report on them: -c CONFIG",
    "configs": "list the configurations that come with the package, or copy one",
    "doctor": "versions, devices, what is supported, and a test of a few seconds; --full for the GPUs",
}

HELP = f"""usage: lightning-same COMMAND ...

Sharpness-Aware Minimization for PyTorch Lightning.

commands:
{chr(10).join(f"  {name:<10} {line}" for name, line in COMMANDS.items())}

`lightning-same COMMAND --help` explains one.
Tab completion: eval "$(register-python-argcomplete lightning-same)"
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: instead of the command line's.

    Raises:
        SystemExit: 2 if there is no such command.
    """
    words = list(sys.argv[1:] if args is None else args)
    # As `python -m` does: the user's own modules are named from where the command is given.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if "_ARGCOMPLETE" in os.environ:
        from lightning_same.cli.completion import complete
        from lightning_same.experiments.study.options import parser

        complete(parser())
    # Each command loads what it needs, and no more: they start sooner so.
    match words:
        case [] | ["-h" | "--help", *_]:
            sys.stdout.write(HELP)
        case ["plot", *rest]:
            from lightning_same.cli.plot import main as plot

            plot(rest)
        case ["sharpness", *rest]:
            from lightning_same.cli.sharpness import main as sharpness

            sharpness(rest)
        case ["configs", *rest]:
            from lightning_same.cli.configs import main as configs

            configs(rest)
        case ["doctor", *rest]:
            from lightning_same.cli.doctor import main as doctor

            doctor(rest)
        case ["study", *rest]:
            from lightning_same.experiments.study import main as study

            study(rest)
        case [word, *_] if word in COMMANDS or word.startswith("-"):
            from lightning_same.cli.fit import main as fit

            # Given a list, LightningCLI warns that the command line's is not read.
            fit(None if args is None else words)
        case [word, *_]:
            close = difflib.get_close_matches(word, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}."
            sys.stderr.write(f"lightning-same: error: no command {word!r}; {hint}\n")
            sys.exit(2)


if __name__ == "__main__":
    main()
