"""What a study refuses."""

from lightning_same.cli.errors import UserError


class StudyError(UserError):
    """What the person who gave the command has to know or to change; shown without a traceback."""
