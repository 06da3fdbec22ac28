"""What `from logger import ...` finds in a project without a folder `logger`; numbers are logged by the loop itself."""

from __future__ import annotations

from typing import Any


def setup_logging(*args: Any, **kwargs: Any) -> None:
    """Do nothing: the log is set up already."""


class TensorboardWriter:
    """Takes every call and writes nothing: event files are written by the loop itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
