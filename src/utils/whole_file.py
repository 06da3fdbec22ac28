"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal


@contextmanager
def whole_file(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Give a new file beside `path`, which takes its place at once, all of it on disk, when the block ends well.

    Text is UTF-8, its line ends as they are written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    encoding, newline = ("utf-8", "") if mode == "w" else (None, None)
    try:
        with beside.open(mode.replace("w", "x"), encoding=encoding, newline=newline) as file:  # follows no link
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_file(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all."""
    with whole_file(path) as file:
        file.write(text)
