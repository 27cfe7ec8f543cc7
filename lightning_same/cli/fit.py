"""LightningCLI with ``--sam``, for any LightningModule."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_same.cli.checkpoint_files import why_not_loaded
from lightning_same.cli.closing import say_last, say_tested, say_where
from lightning_same.cli.configs import found, missing
from lightning_same.cli.errors import UserError, one_line, root, say, told, two_lines
from lightning_same.cli.explanations import explained, unknown_option
from lightning_same.cli.given import argument_of_no_rule, not_as_given, value_of
from lightning_same.cli.parser import argparse_error
from lightning_same.rules.base import Rule
from lightning_same.trainer.resuming import is_of_a_checkpoint_file, is_of_what_was_restored
from lightning_same.two_pass.options import TwoPassOptions
from lightning_same.two_pass.with_sam import with_sam

try:
    from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The command line needs jsonargparse: pip install 'lightning-same[cli]'.", name=error.name
    ) from error

CONFIG_IS = "A configuration has lines such as `model: module.Class`; `lightning-same configs copy digits` writes one."
CONFIG_HELP = "A YAML file, or a name of `lightning-same configs`; may be given again."


class ConfigFile(ActionConfigFile):
    """Takes the name of a configuration that comes with the package, too."""

    @override
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = found(values, "fit")
        is_a_name = re.fullmatch(r"[^\s:{}]+", values)  # what is not may be YAML itself
        if path is None and is_a_name and not os.path.exists(values):
            raise TypeError(missing(values, "fit"))
        if path is None and os.path.isfile(values):
            _check_yaml(values)
        super().__call__(parser, cfg, str(path or values), option_string)  # type: ignore[no-untyped-call]


def _check_yaml(file: str) -> None:
    """Name the file, and the place in it, where it is no mapping in YAML; jsonargparse names neither."""
    try:
        held = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise TypeError(f"--config: {file} is no text in UTF-8.\n{CONFIG_IS}") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise TypeError(f"--config: {file}{line}: {getattr(error, 'problem', 'no YAML')}.\n{CONFIG_IS}") from None
    if not isinstance(held, dict):
        what = "is empty" if held is None else f"holds no options, but {one_line(held, 60)!r}"
        raise TypeError(f"--config: {file} {what}.\n{CONFIG_IS}")


class RuleParser(LightningArgumentParser):
    """Names the choices when a rule or one of its arguments is mistyped."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # A parser within a parser raises, and the outer one has all that is needed to explain.
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        self.prog = self.prog.replace(" [options]", "")
        said = unknown_option(self, message) or argparse_error(message, self) or explained(message)
        what, _, to_do = said.partition("\n")
        refuse(self, what, to_do)


def refuse(parser: LightningArgumentParser, what: str, to_do: str = "") -> NoReturn:
    """End the command with a line that says what is wrong, and one that says what to do."""
    parser.exit(2, two_lines("error: ", what, to_do) + "\n")


def main(words: Sequence[str] | None = None) -> None:
    """Run ``lightning-same fit`` and its like.

    An error of the user's own code is shown with its traceback; one of a checkpoint file is told in one line.

    Args:
        words: instead of the command line's.

    Raises:
        SystemExit: 2 for bad input, 70 for any other error.
    """
    with told("lightning-same", traceback_to_file=False):
        try:
            SAMCLI(args=None if words is None else list(words), parser_kwargs={"prog": "lightning-same"})
        except Exception as error:
            given = sys.argv[1:] if words is None else words
            path = value_of("--ckpt_path", given)
            resumed = path and is_of_what_was_restored(error)
            if (resumed or is_of_a_checkpoint_file(error)) and not isinstance(error, UserError):
                raise why_not_loaded(path, error, given[0] if given else "fit") from error
            raise


class SAMCLI(LightningCLI):
    """LightningCLI with three more options, which stand in the saved config file too.

    ``--sam RULE --sam.rho ...`` trains ``--model``, whatever its class, by that rule. ``--sam null`` trains it without
    SAM, also if its class has a rule. Without the option the class decides.

    ``--two_pass.ascent``, ``--two_pass.accumulate`` and ``--two_pass.nonfinite`` say how the two passes run; see
    `TwoPassOptions`.

    ``--test_after_fit true`` runs the test loop after a fit, on the best checkpoint file if one was kept.
    """

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        versions = [f"{name}=={version(name)}" for name in ("lightning-same", "lightning", "torch")]
        parser = RuleParser(**{"dump_header": versions, **kwargs})
        parser.add_argument("-c", "--config", action=ConfigFile, help=CONFIG_HELP)
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Suppressed: a model that is not told anything keeps the rule of its class.
        parser.add_argument(
            "--sam",
            type=Rule | None,
            default=argparse.SUPPRESS,
            help="The SAM-family rule to train by, or null; --sam.help RULE shows its arguments.",
        )
        parser.add_argument(
            "--two_pass",
            type=TwoPassOptions,
            default=argparse.SUPPRESS,
            help="How the two passes run: --two_pass.ascent, --two_pass.accumulate, --two_pass.nonfinite.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Run the test loop after a fit, on the best checkpoint."
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = sys.argv[1:] if args is None else args
        self._words = [str(word) for word in words] if isinstance(words, list) else []
        argument = argument_of_no_rule(self._words)
        if argument:
            to_do = f"Name it by --sam, such as --sam SAM {argument} {value_of(argument, self._words)}."
            refuse(parser, f"{argument} is an argument of a rule, and no rule is named.", to_do)
        super().parse_arguments(parser, args)
        self._asked = self._config_of("model")

    @override
    def before_instantiate_classes(self) -> None:
        """Tell where the checkpoint file's model is not the one that was given: Lightning takes the file's."""
        for option, asked, used in not_as_given(self._asked, self._config_of("model"), self._words):
            if option == "--model":
                refuse(self.parser, f"--ckpt_path: the file's model is {used}, not {asked}.", f"Give --model {used}.")
            rank_zero_only(say)(f"{option} {asked} is not used: the model in the checkpoint file has {used}.")

    def _config_of(self, name: str) -> Any:
        """What stands under a name in the configuration, at any time: Lightning keeps the subcommand's apart."""
        config = self.config
        subcommand = config.get("subcommand")
        found = config[subcommand].get(name) if subcommand else config.get(name)
        return found.as_dict() if isinstance(found, Namespace) else found

    @override
    def instantiate_classes(self) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        given = "sam" in config
        rule = self._rule(config["sam"]) if given else None
        super().instantiate_classes()
        if given:
            with_sam(self.model, rule)
        options: TwoPassOptions | None = self._get(self.config_init, "two_pass")
        if options is not None:
            if getattr(self.model, "sam", None) is None:
                self.parser.error(
                    "--two_pass says how a rule's two passes run, and there is none. Give --sam RULE too."
                )
            with_sam(self.model, self.model.sam, **options.arguments())

    def before_fit(self) -> None:
        """Refuse ``--test_after_fit`` where nothing can be tested: before the training, not after it."""
        if not self._get(self.config_init, "test_after_fit"):
            return
        name = type(self.model).__name__
        to_do = "Leave --test_after_fit out, or define it."
        if not is_overridden("test_step", self.model):
            refuse(self.parser, f"--test_after_fit: {name} has no `test_step`.", to_do)
        data = self.datamodule
        if not (is_overridden("test_dataloader", self.model) or is_overridden("test_dataloader", data)):
            owner = name if data is None else type(data).__name__
            refuse(self.parser, f"--test_after_fit: {owner} has no `test_dataloader`.", to_do)

    def after_fit(self) -> None:
        """Run the test loop if ``--test_after_fit`` says so, and say where everything is."""
        say_last(self.trainer)
        if self._get(self.config_init, "test_after_fit"):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            weights = "best" if best else None
            say_tested(
                self.trainer,
                self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=weights, verbose=False),
            )
        say_where(self.trainer)

    def _rule(self, config: Any) -> Rule | None:
        """The rule, built ahead of everything else, so that a value out of range ends in one line."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--sam", type=Rule | None)
        try:
            rule: Rule | None = parser.instantiate(parser.parse_object({"sam": config})).sam
        except (TypeError, ValueError) as error:
            self.parser.error(f"--sam: {root(error)}", error)
        return rule
