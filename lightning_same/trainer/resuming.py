"""Where Lightning reads a checkpoint file and puts what it holds in its place."""

import traceback

_READERS = ("lightning.pytorch.trainer.connectors.checkpoint_connector", "lightning.pytorch.core.saving")


def is_of_a_checkpoint_file(error: BaseException) -> bool:
    """Whether an error was raised while a checkpoint file was read or restored, by Lightning or by what it called."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        parsed = name == "lightning.pytorch.cli" and frame.f_code.co_name == "_parse_ckpt_path"
        if parsed or name in _READERS:
            return True
    return False


def is_of_what_was_restored(error: BaseException) -> bool:
    """Whether torch's optimizers or Lightning's loops have found something in their state that they do not understand.

    After a fit has been resumed, that is what the checkpoint file holds: it is put in place as it is.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not isinstance(error, AttributeError | KeyError | TypeError):
        return False
    of_an_optimizer = frames[-1].startswith("torch.") and any("torch.optim." in name for name in frames)
    return of_an_optimizer or frames[-1].startswith("lightning.pytorch.loops.")
