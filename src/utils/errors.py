"""What can go wrong for a user, and with which exit code a command then ends."""

from __future__ import annotations


class KeelError(Exception):
    """A mistake or misfortune that a user can act on: shown as one to three lines, without a traceback.

    The text reads `WHERE: WHAT, received value; what would be right`. Anything that is not a
    `KeelError` is a bug of ours or of the user's code and keeps its traceback.
    """

    exit_code = 1


class ConfigError(KeelError):
    """The config or the command line is wrong. Carries every mistake found, one a line."""

    exit_code = 2


class DataError(KeelError):
    """A file, row, label or batch is not what it must be.

    Args:
        position: Of the row in its batch, where one row is to blame and nobody there knows its number.
    """

    exit_code = 3

    def __init__(self, text: str, position: int | None = None) -> None:
        super().__init__(text)
        self.position = position


class CheckpointError(KeelError):
    """A checkpoint is missing, damaged, or belongs to another model."""

    exit_code = 4


class ResourceError(KeelError):
    """Disk or memory ran out."""

    exit_code = 5


class NumericsError(KeelError):
    """A loss or gradient is no longer a finite number."""

    exit_code = 6


class WorkerError(KeelError):
    """A loader worker or another rank died or hangs."""

    exit_code = 7


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; the name of its class where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
