"""Reading CSV files: what is wrong with one is told by its row and line."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from src.data.packed import DAMAGED, check_unpacked
from src.utils.errors import DataError
from src.utils.paths import shown_path


def read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """Return a CSV file with a header as a table.

    Raises:
        DataError: There is no such file, no row in it, a row of another length than the header, or no text.
    """
    with csv_errors(path, separator):
        check_unpacked(path)
        frame: pd.DataFrame = pd.read_csv(path, **csv_options(separator), low_memory=False)
    check_rows(path, separator, len(frame), bool(len(frame)) and bool(frame.iloc[:, -1].isna().any()))
    return frame


def csv_options(separator: str) -> dict[str, Any]:
    """Return how pandas is to read a file."""
    return {"sep": separator, "index_col": False, "skipinitialspace": True}


@contextmanager
def csv_errors(path: Path, separator: str) -> Iterator[None]:
    """Read a CSV file in this block.

    Raises:
        DataError: There is no such file, a row is longer than the header, or it is no text.
    """
    where = shown_path(path)
    if not path.is_file():
        raise DataError(f"{where}: no such file; put it there, or name another as `file`")
    if path.stat().st_size == 0:
        raise DataError(f"{where}: is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows that are too long would lose their end
            yield
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise DataError(_ragged_row(path, separator) or f"{where}: {error}") from error
    except (ValueError, *DAMAGED) as error:  # no text, nothing in it, several files in one
        raise DataError(f"{where}: cannot be read as CSV: {error}") from error


def check_rows(path: Path, separator: str, num_rows: int, has_empty_end: bool) -> None:
    """Check what was read.

    Args:
        path: The file.
        separator: What stands between two cells.
        num_rows: Of it.
        has_empty_end: Whether a cell of the last column is empty: then rows may be too short.

    Raises:
        DataError: There is no row, or one of another length than the header.
    """
    if not num_rows:
        raise DataError(f"{shown_path(path)}: has a header and no rows")
    if has_empty_end and (ragged := _ragged_row(path, separator)):
        raise DataError(ragged)


def _ragged_row(path: Path, separator: str) -> str | None:
    """Return a message about the first row that has more or fewer cells than the header; None if there is none."""
    if path.suffix not in (".csv", ".tsv", ".txt"):
        return None  # packed
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file, delimiter=separator)
        expected = len(next(rows))
        filled = (row for row in rows if row)  # pandas passes over empty lines
        for number, row in enumerate(filled, start=1):
            if len(row) != expected:
                return (
                    f"{shown_path(path)} row {number} (line {rows.line_num}): {len(row)} columns, {expected} expected"
                )
    return None
