"""`metrics.csv`: one row per epoch or evaluation, for pandas and for people."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from src.logger.sink import FLUSH_EVERY_S, Sink
from src.utils.whole_file import write_file

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@lru_cache(maxsize=1024)
def _columns(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The column of each value, empty for durations; None for the numbers of single steps."""
    if any(name.startswith("step/") for name in names):
        return None
    return tuple("" if name.startswith("time/") else _CONTROL.sub("?", name) for name in names)


def _cells(values: Mapping[str, float], step: int, epoch: int | None) -> dict[str, str]:
    columns = _columns(tuple(values))
    if columns is None:
        return {}
    cells = {"epoch": "" if epoch is None else str(epoch), "step": str(step), "": ""}
    cells.update(zip(columns, map(repr, values.values()), strict=True))
    del cells[""]
    return cells


class CSVFile(Sink):
    """Writes each evaluation's numbers as a row; names that come later become new columns, empty in older rows.

    Numbers are written so that reading them gives the same bits. Those of single steps (`step/...`) are left out, and
    durations (`time/...`) too: a run that was stopped and resumed writes the same bytes as one that wasn't.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns = ["epoch", "step"]
        self._rows = 0
        self._waiting: list[tuple[Mapping[str, float], int, int | None]] = []  # not yet in the file, nor in `_rows`
        self._flushed_at = -math.inf

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        """Add a row. It is in the file two seconds after the one before, or at once if that is past."""
        self._waiting.append((values, step, epoch))
        if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, and rewrite the file first when they have a new name."""
        self._flushed_at = time.monotonic()
        waiting, self._waiting = self._waiting, []
        added = list(filter(None, (_cells(*each) for each in waiting)))
        if not added:
            return
        new = dict.fromkeys(name for cells in added for name in cells if name not in self._columns)
        self._columns += new
        rows = [[cells.get(name, "") for name in self._columns] for cells in added]
        if new and (kept := self._read(self._rows)):
            write_file(self._path, self._text([self._columns, *kept]))
        elif new or self._rows == 0:
            self._path.unlink(missing_ok=True)
            rows.insert(0, self._columns)
        self._rows += len(added)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text(rows))

    def close(self) -> None:
        """Write the rows that wait."""
        self.flush()

    def state_dict(self) -> dict[str, Any]:
        """The columns and number of rows, all in the file: bytes alone would not survive a new column."""
        self.flush()
        return {"columns": list(self._columns), "rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the file back to the rows and columns it had."""
        self._waiting = []
        kept = self._read(state["rows"])
        self._columns, self._rows = list(state["columns"]), len(kept)
        width = len(self._columns)
        if kept:
            write_file(self._path, self._text([self._columns, *(row[:width] for row in kept)]))
        else:
            self._path.unlink(missing_ok=True)

    def _read(self, rows: int) -> list[list[str]]:
        """The first rows as they stand in the file, without the header."""
        if rows == 0 or not self._path.exists():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))[1 : rows + 1]

    def _text(self, rows: list[list[str]]) -> str:
        width = len(self._columns)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*row, *[""] * (width - len(row))] for row in rows)
        return text.getvalue()
