"""Tab completion by argcomplete: of commands, options, rules, and configurations that come with the package.

Nothing heavy is loaded: each press of the key starts the command once.
"""

import argparse

import argcomplete
from argcomplete.completers import FilesCompleter

from lightning_same.cli import configs, plot
from lightning_same.cli.doctor import command as doctor

RULES = (
    "AESAM",
    "ASAM",
    "CheckpointDose",
    "CheckpointGains",
    "CheckpointSelect",
    "CustomSAME",
    "FriendlySAM",
    "GSAM",
    "GradientNormPenalty",
    "LookSAM",
    "MomentumSAM",
    "RandomGains",
    "SAM",
    "SAMDirection",
    "SAMMagnitude",
    "SAME",
    "SANER",
    "USAM",
    "VaSSO",
    "WSAM",
)
"""What follows ``--sam``; to find them all would load torch."""

TRAINER = ("accelerator", "callbacks", "devices", "logger", "max_epochs", "max_steps", "precision", "strategy")
"""Options of the Trainer that are given most often."""

SHARPNESS = ("--probe_batches", "--mode", "--confident", "--adaptive", "--rho", "--output", "--weights_only")
"""Options of ``lightning-same sharpness`` alone that are given most often."""


def complete(study: argparse.ArgumentParser) -> None:
    """Print what the word may become, and end the process; nothing unless the shell has asked for it.

    Args:
        study: the parser of ``lightning-same study``, which stands on top of this package.
    """
    argcomplete.autocomplete(_parser(study), validator=lambda word, prefix: word.startswith(prefix))


def _parser(study: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """All commands as one parser, which completes and never parses."""
    parser = argparse.ArgumentParser(prog="lightning-same")
    commands = parser.add_subparsers()
    for command in "fit", "validate", "test", "predict", "sharpness":
        own = commands.add_parser(command)
        _offer(own.add_argument("--config", "-c"), configs.names("fit"))
        _offer(own.add_argument("--sam"), [*RULES, "null"])
        for option in (
            "--model",
            "--data",
            "--ckpt_path",
            "--print_config",
            *(f"--trainer.{name}" for name in TRAINER),
        ):
            own.add_argument(option)
        own.add_argument("--two_pass.ascent", choices=["global", "local"])
        own.add_argument("--two_pass.accumulate", choices=["window", "micro_batch"])
        own.add_argument("--two_pass.nonfinite", choices=["propagate", "skip"])
        for option in SHARPNESS if command == "sharpness" else ("--test_after_fit",):
            own.add_argument(option)
    for command, its in {"plot": plot, "configs": configs, "doctor": doctor}.items():
        commands.add_parser(command, parents=[its.parser()], add_help=False)
    _of(commands.choices["configs"], "name").completer = lambda **_: configs.all_names()  # type: ignore[attr-defined]
    own = commands.add_parser("study", parents=[study], add_help=False)
    _offer(_of(own, "config"), configs.names("study"))
    return parser


def _of(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    """The argument of this name."""
    return next(action for action in parser._actions if action.dest == name)


def _offer(action: argparse.Action, choices: list[str]) -> None:
    """An option takes one of these, or a file."""
    files = FilesCompleter(["yaml", "yml", "py"])

    def either(prefix: str, **given: object) -> list[str]:
        return [*choices, *files(prefix, **given)]

    action.completer = either  # type: ignore[attr-defined]
