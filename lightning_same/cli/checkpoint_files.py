"""What is wrong with a checkpoint file, and what to do, in a line each."""

import pickle
import re
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lightning_same.cli.errors import UserError, one_line

NAMED_BY_FIT = "A fit says at its end where its checkpoint file is."
AS_WRITTEN = "Give --model and its arguments as in the fit that wrote it; --config with its config.yaml does."


def check_that_it_is_a_file(path: str) -> None:
    """Refuse what is no checkpoint file, as far as that is seen without unpickling it.

    Raises:
        UserError: if the path leads to no file, to a folder, or to a file that torch has not written whole.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"--ckpt_path: {path} is a folder.", "Name the file in it, such as epoch=2-step=24.ckpt.")
    if not file.exists():
        raise UserError(f"--ckpt_path: there is no file {path}.", NAMED_BY_FIT)
    if not file.is_file():  # Reading a FIFO would wait forever.
        raise UserError(f"--ckpt_path: {path} is not a regular file.", NAMED_BY_FIT)
    try:
        with file.open("rb") as opened:
            first = opened.read(1)
    except OSError as error:
        raise UserError(f"--ckpt_path: {path} cannot be read: {error.strerror}.", NAMED_BY_FIT) from error
    # torch writes zip archives, and before version 1.6 wrote bare pickles, of protocol 2.
    if first != b"\x80" and not zipfile.is_zipfile(file):
        what = "is no checkpoint file, or not a whole one" if first else "is empty"
        raise UserError(f"--ckpt_path: {path} {what}.", NAMED_BY_FIT)


def check_that_weights_fit(path: str, weights: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Refuse the weights of another model.

    Raises:
        UserError: if a weight is missing, unknown or of another shape.
    """
    own = model.state_dict()
    differ = [
        f"`{name}` has the shape {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in weights
        if name in own and getattr(own[name], "shape", None) != weights[name].shape
    ]
    differ += [f"`{name}` is only in the file" for name in weights if name not in own]
    differ += [f"`{name}` is only in the model" for name in own if name not in weights]
    if differ:
        more = f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
        raise UserError(
            f"--ckpt_path: {path} holds the weights of another model than {type(model).__name__}: {differ[0]}{more}.",
            AS_WRITTEN,
        )


def why_not_loaded(path: str, error: BaseException, command: str) -> UserError:
    """What to say of an error that Lightning has raised on the way from a checkpoint file to a model.

    Args:
        path: as it was given; empty if that is not known. Lightning takes words and addresses, too.
        error: Lightning's.
        command: such as ``fit``.
    """
    is_a_path = path not in ("", "best", "last", "hpc") and "://" not in path
    # A sharded checkpoint is a folder: that alone is no fault.
    if is_a_path and (isinstance(error, IsADirectoryError) or not Path(path).is_dir()):
        try:
            check_that_it_is_a_file(path)
        except UserError as refused:
            return refused
    file = path or "the file"
    if isinstance(error, pickle.UnpicklingError) and "eights only load failed" in str(error):
        in_python = f"trainer.{command}(model, ckpt_path=..., weights_only=False)"
        return UserError(
            f"--ckpt_path: {file} holds more than weights, and Lightning's command line reads weights only.",
            f"If you trust the file, read it in Python: {in_python}.",
        )
    raised_in = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    # LightningCLI asks the file for the model's arguments first, as of a mapping.
    if "pytorch-lightning_version" in error.args or raised_in[-1:] == ["_parse_ckpt_path"]:
        return UserError(f"--ckpt_path: {file} is no checkpoint file of Lightning's.", NAMED_BY_FIT)
    if "size mismatch for" in str(error) or "loading state_dict" in str(error):
        differ = re.sub(r"Error\(s\) in loading state_dict for (\w+):", r"another model than \1:", str(error))
        return UserError(f"--ckpt_path: {file} holds the weights of {one_line(differ, 300)}", AS_WRITTEN)
    if path in ("best", "last", "hpc"):
        return UserError(f"--ckpt_path: {one_line(error, 300)}", NAMED_BY_FIT)
    purpose = "resumed from" if command == "fit" else "loaded"
    return UserError(f"--ckpt_path: the file cannot be {purpose}: {type(error).__name__}: {one_line(error, 300)}")
