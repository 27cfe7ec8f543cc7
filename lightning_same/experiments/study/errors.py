"""What a study refuses, and how a run fails."""

from typing import Literal

from lightning_same.cli.errors import UserError

Kind = Literal["failed", "full", "busy"]
"""How a run has ended, other than well: by an error, on a full disk, or since another process is at it."""


class StudyError(UserError):
    """What the person who gave the command has to know or to change; shown without a traceback."""
