"""The files that TensorBoard reads: records of one protobuf each, appended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from src.logger.event_records import as_records

PATTERN = "events.out.tfevents.*"


class EventFile:
    """One new file in `folder`; TensorBoard reads all files of a folder as one run, in the order of their names.

    Raises:
        ImportError: TensorBoard isn't installed.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

        folder.mkdir(parents=True, exist_ok=True)
        # A clock that was set back must not sort this file before an older one, nor two starts in a second tie.
        latest = max((int(path.name.split(".")[3]) for path in folder.glob(PATTERN)), default=0)
        name = f"events.out.tfevents.{max(int(time.time()), latest + 1):010d}.keel.{os.getpid()}"
        self._event: Any = Event
        self._file = (folder / name).open("xb")  # follows no link
        self._waiting: list[bytes] = []
        self._add(file_version="brain.Event:2")

    def write(self, event: bytes) -> None:
        """Append an event that is packed already."""
        self._waiting.append(event)

    def write_summary(self, summary: Any, step: int) -> None:
        """Append a `Summary`, all its values in one event, as of now."""
        self._add(step=step, summary=summary)

    def write_graph(self, definition: bytes) -> None:
        """Append the operations of a model."""
        self._add(graph_def=definition)

    def _add(self, **content: Any) -> None:
        self.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def flush(self) -> None:
        """Let readers see what was written."""
        waiting, self._waiting = self._waiting, []
        self._file.write(as_records(waiting))
        self._file.flush()

    def close(self) -> None:
        """Write out and close."""
        self.flush()
        self._file.close()


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every event file below `folder`, by its path from there."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob(PATTERN))}


def cut_back(folder: Path, to: dict[str, int]) -> None:
    """Take files back to the sizes they had, and remove those that are newer."""
    for name, size in sizes(folder).items():
        if name not in to:
            (folder / name).unlink()
        elif size > to[name]:
            os.truncate(folder / name, to[name])
