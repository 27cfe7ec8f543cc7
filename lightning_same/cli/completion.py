"""Tab completion by argcomplete: of commands, options, rules, and configurations that come with the package.

Nothing heavy is loaded: each press of the key starts the command once.
"""

import argparse

import argcomplete
from argcomplete.completers import FilesCompleter

from lightning_same.cli import configs, plot

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


def complete() -> None:
    """Print what the word may become, and end the process; nothing unless the shell has asked for it."""
    argcomplete.autocomplete(_parser(), validator=lambda word, prefix: word.startswith(prefix))


def _parser() -> argparse.ArgumentParser:
    """All commands as one parser, which completes and never parses."""
    parser = argparse.ArgumentParser(prog="lightning-same")
    commands = parser.add_subparsers()
    for command in "fit", "validate", "test", "predict", "sharpness":
        own = commands.add_parser(command)
        _choose(own, "--config", "-c", choices=configs.names("fit"))
        _choose(own, "--sam", choices=[*RULES, "null"])
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
        own.add_argument("--test_after_fit", choices=["true", "false"])
    commands.add_parser("plot", parents=[plot.parser()], add_help=False)
    commands.add_parser("configs", parents=[configs.parser()], add_help=False)
    study = commands.add_parser("study")
    study.add_argument("command", nargs="?", choices=["report"])
    _choose(study, "--config", "-c", choices=configs.names("study"))
    for option in "--results", "--jobs", "--run", "--dry-run", "--print-commands":
        study.add_argument(option)
    return parser


def _choose(parser: argparse.ArgumentParser, *options: str, choices: list[str]) -> None:
    """An option that takes one of these, or a file."""
    files = FilesCompleter(["yaml", "yml", "py"])

    def either(prefix: str, **given: object) -> list[str]:
        return [*choices, *files(prefix, **given)]

    parser.add_argument(*options).completer = either  # type: ignore[attr-defined]
