"""A CSV file of any length, read in pieces and written as arrays of numbers and codes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.data.packed import check_unpacked
from src.data.tables.csv_file import check_rows, csv_errors, csv_options
from src.utils.whole_file import write_file

PIECE_BYTES = 1 << 25
"""Of a table in memory at once, about."""
TRIED_ROWS = 1000
MAX_TEXTS = 1 << 20
"""A column of more different texts is left out: they would have to be kept in memory."""
EXACT = 2**53
"""Whole numbers below it are the same as float64."""
Array = np.ndarray[Any, Any]


@dataclass
class Column:
    """What is known of a column without looking at it again."""

    name: str
    kind: str = "empty"
    """`empty`, `integer`, `number`, `boolean`, or `text`."""
    index: int = 0
    """Its place among the numbers or the codes."""
    num_empty: int = 0
    has_infinite: bool = False
    is_exact: bool = True
    """Whether the numbers are what float64 can hold, and the texts few enough to be there."""
    texts: list[str] = field(default_factory=list)
    """What its codes mean; an empty cell is -1."""

    @property
    def is_whole(self) -> bool:
        """Whether each cell is a whole number."""
        return self.kind == "integer" and not self.num_empty

    def numbers(self, values: pd.Series[Any]) -> Array | None:
        """Return cells as float64 [rows], nan where they are empty; None if they must be read as text."""
        kind = _kind(values)
        kinds = {kind, self.kind} - {"empty"}
        if "text" in kinds or ("boolean" in kinds and len(kinds) > 1):
            return None
        self.kind = "number" if len(kinds) > 1 else next(iter(kinds), "empty")
        numbers = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
        empty = np.isnan(numbers)
        self.num_empty += int(empty.sum())
        self.is_exact &= kind != "integer" or bool((np.abs(numbers) < EXACT).all())
        self.has_infinite |= bool(np.isinf(numbers).any())
        return numbers


class _Coder:
    """Gives each text of a column a number, in the order in which they come."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self._numbers: dict[str, int] = {}

    def codes(self, values: pd.Series[Any]) -> Array:
        """Return the number of each text, int32 [rows]; -1 for an empty cell."""
        places, texts = pd.factorize(values)
        self.column.num_empty += int((places < 0).sum())
        if not self.column.is_exact:
            return np.full(len(values), -1, dtype=np.int32)
        numbers = [self._numbers.setdefault(text, len(self._numbers)) for text in texts]
        if len(self._numbers) > MAX_TEXTS:
            self.column.is_exact = False
            self._numbers.clear()
        return np.array([*numbers, -1], dtype=np.int32)[places]

    def close(self) -> Column:
        """Return what is known of the column."""
        self.column.texts = list(self._numbers)
        return self.column


class _RowFile:
    """A `.npy` file that rows are appended to."""

    def __init__(self, path: Path, dtype: str, width: int) -> None:
        self._file = path.open("wb")
        self._dtype, self._shape = np.dtype(dtype), (0, width)
        self._write_header()

    def append(self, columns: list[Array], num_rows: int) -> None:
        rows = np.empty((num_rows, len(columns)), dtype=self._dtype)
        for index, values in enumerate(columns):
            rows[:, index] = values
        self._file.write(rows.data)
        self._shape = (self._shape[0] + num_rows, self._shape[1])

    def close(self, is_whole: bool) -> None:
        if is_whole:
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        """Write how many rows there are; numpy leaves room for the number to grow."""
        self._file.seek(0)
        described = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, described)
        self._file.seek(0, os.SEEK_END)


def convert(path: Path, separator: str, folder: Path) -> None:
    """Write `numbers.npy`, float64 [rows, N], `codes.npy`, int32 [rows, C], and `columns.json`, a list of `Column`.

    A column that is not number throughout is text throughout, as when pandas reads the whole file: where that shows
    only further down, reading starts again.

    Raises:
        DataError: The file is no CSV.
    """
    texts: set[str] = set()
    while found := _convert(path, separator, folder, texts):
        texts |= found


def _convert(path: Path, separator: str, folder: Path, texts: set[str]) -> set[str]:
    """Return which columns must be read as text, too; if there are any, what was written is no good."""
    numbers: list[Column] = []
    coders: list[_Coder] = []
    files: list[_RowFile] = []
    num_rows = 0
    try:
        for piece in _pieces(path, separator, texts):
            if not files:
                names = [str(name) for name in piece]
                numbers = [Column(name, index=i) for i, name in enumerate(c for c in names if c not in texts)]
                coded = [Column(name, "text", i) for i, name in enumerate(c for c in names if c in texts)]
                coders = [_Coder(column) for column in coded]
                files.append(_RowFile(folder / "numbers.npy", "<f8", len(numbers)))
                files.append(_RowFile(folder / "codes.npy", "<i4", len(coders)))
            values = {column.name: column.numbers(piece[column.name]) for column in numbers}
            if found := {name for name, read in values.items() if read is None}:
                return found
            files[0].append([read for read in values.values() if read is not None], len(piece))
            files[1].append([coder.codes(piece[coder.column.name]) for coder in coders], len(piece))
            num_rows += len(piece)
        by_name = {column.name: column for column in (*numbers, *(coder.close() for coder in coders))}
        last = by_name[names[-1]] if num_rows else None
        check_rows(path, separator, num_rows, last is not None and last.num_empty > 0)
        described = [asdict(by_name[name]) for name in names]
        write_file(folder / "columns.json", json.dumps(described))
        for each in files:
            each.close(is_whole=True)
        return set()
    finally:
        for each in files:
            each.close(is_whole=False)


def _pieces(path: Path, separator: str, texts: set[str]) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file, so many at a time."""
    options: dict[str, Any] = {**csv_options(separator), "dtype": dict.fromkeys(texts, str)}
    with csv_errors(path, separator):
        check_unpacked(path)
        some = pd.read_csv(path, **options, nrows=TRIED_ROWS)
        row_bytes = int(some.memory_usage(deep=True).sum()) // max(1, len(some))
        with pd.read_csv(path, **options, chunksize=max(TRIED_ROWS, PIECE_BYTES // max(1, row_bytes))) as reader:
            yield from reader


def _kind(values: pd.Series[Any]) -> str:
    """Return what kind of column these cells would be by themselves."""
    known = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}.get(values.dtype.kind, "text")
    if known in ("text", "number") and values.isna().all():
        return "empty"
    if known == "text" and values.dtype == object and all(isinstance(each, bool) for each in values.dropna()):
        return "boolean"  # with empty cells among them
    return known
