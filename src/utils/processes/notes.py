"""What a rank leaves for its launcher to read when it has ended."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch's launcher looks for what a rank has to say about its end."""
HEARD = "heard"
"""Note of a rank that ends in silence because another tells the reason."""


def note(name: str, text: str) -> None:
    """Leave a text where this rank's launcher keeps its files, if it keeps any."""
    if place := os.environ.get(ERROR_FILE):
        with suppress(OSError):
            Path(place).with_name(name).write_text(text, encoding="utf-8")


def note_error(text: str) -> None:
    """Let the launcher know that this rank has told why it ends; torchrun shows `text` at its own end."""
    if place := os.environ.get(ERROR_FILE):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        note(Path(place).name, json.dumps({"message": {"message": text, "extraInfo": extra}}))
