"""CSV files: `data: {type: table.Table, args: {file: data/50_Startups.csv, target: Profit}}`."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from src.data.frame import FrameDataset, Missing, Scaling
from src.utils.errors import DataError
from src.utils.paths import project_path, shown_path


class Table(FrameDataset):
    """The rows of a CSV file with a header.

    Empty cells, and those that say NA, NaN, null and the like, are missing. See `FrameDataset` for what a sample is.

    Args:
        file: Path, relative to the project; may be packed (`.gz`, `.zip`, ...).
        target: Column or columns to predict; None if there is none.
        features: Columns to predict from; default all others.
        categorical: Columns of numbers that are categories nonetheless. Text columns always are.
        scale_inputs: scikit-learn preprocessing of the number columns, by name or as `{type, args}`.
        scale_target: scikit-learn preprocessing of the target, undone in predictions.
        missing: Rows with an empty cell: `error`; `drop` them; or `fill` the cell: a number with the median of the
            training rows, marked in a column of its own, a category with one of its own.
        classify: Whether the target is a class; default: if it is text.
        separator: What stands between two cells.
        ignore: Columns that are no features, though `features` does not say so: a name, or what the split goes by.
    """

    def __init__(
        self,
        file: str,
        target: str | Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
        scale_inputs: Scaling = None,
        scale_target: Scaling = None,
        missing: Missing = "error",
        classify: bool | None = None,
        separator: str = ",",
        ignore: Sequence[str] = (),
    ) -> None:
        path = project_path(file)
        super().__init__(
            read_csv(path, separator),
            shown_path(path),
            target,
            features,
            categorical,
            scale_inputs,
            scale_target,
            missing,
            classify,
            ignore,
        )


def read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """Return a CSV file with a header as a table.

    Raises:
        DataError: There is no such file, no row in it, a row of another length than the header, or no text.
    """
    where = shown_path(path)
    if not path.is_file():
        raise DataError(f"{where}: no such file; put it there, or name another as `file`")
    if path.stat().st_size == 0:
        raise DataError(f"{where}: is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows that are too long would lose their end
            frame = pd.read_csv(path, sep=separator, index_col=False, low_memory=False, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise DataError(_ragged_row(path, separator) or f"{where}: {error}") from error
    except (UnicodeDecodeError, pd.errors.EmptyDataError, OSError, EOFError) as error:
        raise DataError(f"{where}: cannot be read as CSV: {error}") from error
    if not len(frame):
        raise DataError(f"{where}: has a header and no rows")
    if frame.iloc[:, -1].isna().any() and (ragged := _ragged_row(path, separator)):
        raise DataError(ragged)
    return frame


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
