"""What a table holds: numbers, and texts as codes, of rows that are asked for; here from a pandas table in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from src.data.tables.columns import check_columns
from src.utils.errors import DataError

Array = np.ndarray[Any, Any]
Rows = Array | slice
EMPTY = "(empty)"
"""The category of empty cells that are filled."""


@dataclass(frozen=True)
class Choice:
    """Which columns of a table are used, and what for."""

    where: str
    """What messages call the table."""

    features: Sequence[str]
    targets: Sequence[str]
    categorical: Sequence[str]
    """Columns of numbers that are texts nonetheless."""

    missing: str
    """`error`, `drop` or `fill`: see `FrameDataset`."""

    classify: bool | None
    """Whether the target is a class; None: if it is text."""

    @property
    def needed(self) -> list[str]:
        """The columns whose cells must not be empty."""
        return [*self.targets] if self.missing == "fill" else [*self.features, *self.targets]


class Cells(Protocol):
    """The features and targets of the rows of a table, before preprocessing."""

    number_names: list[str]
    """Features that are numbers, in their order."""
    vocabularies: dict[str, Array]
    """Features that are texts: which ones there are, object []; a code is a place in here."""
    class_names: list[str] | None
    """Of a target that is a class."""
    class_codes: Array | None
    """Such a target, int64 [rows]."""
    chunk_rows: int
    """Rows to read at once at most; all of them, where they are in memory anyway."""

    def __len__(self) -> int: ...

    def numbers(self, rows: Rows) -> Array:
        """Return the number features, float64 [N, F], nan where a cell is empty."""

    def codes(self, rows: Rows) -> list[Array]:
        """Return the text features, one array of integers [N] for each."""

    def targets(self, rows: Rows) -> Array:
        """Return the targets that are numbers, float64 [N, T]."""

    def column(self, name: str) -> Array:
        """Return any column as the file has it, [rows]."""

    def row_id(self, row: int) -> int:
        """Return a row's number in the file."""


class FrameCells:
    """A pandas table in memory; see `Cells`."""

    def __init__(self, frame: pd.DataFrame, choice: Choice) -> None:
        where, targets, classify = choice.where, choice.targets, choice.classify
        self._where = where
        frame = _without_missing(frame, choice.needed, where, choice.missing)
        self._frame = frame
        self._rows = frame.index.to_numpy()
        self.chunk_rows = max(1, len(frame))
        numbers = {c: _numbers(frame[c], where) for c in choice.features if c not in choice.categorical}
        self.number_names = [c for c, values in numbers.items() if values is not None]
        self._numbers = np.column_stack([np.empty((len(frame), 0)), *(v for v in numbers.values() if v is not None)])
        coded = {c: pd.factorize(_texts(frame[c])) for c in choice.features if numbers.get(c) is None}
        self._codes = [codes for codes, _ in coded.values()]
        self.vocabularies = {c: np.asarray(names, dtype=object) for c, (_, names) in coded.items()}
        columns = [_numbers(frame[c], where) if not classify else None for c in targets]
        texts = [name for name, column in zip(targets, columns, strict=True) if column is None]
        self._targets = np.column_stack([np.empty((len(frame), 0)), *(c for c in columns if c is not None)])
        self.class_names: list[str] | None = None
        self.class_codes: Array | None = None
        if texts:
            check_class(where, texts[0], targets, classify)
            names, self.class_codes = np.unique(frame[texts[0]].to_numpy(), return_inverse=True)
            self.class_names = [str(name) for name in names]

    def __len__(self) -> int:
        return len(self._rows)

    def numbers(self, rows: Rows) -> Array:
        return self._numbers[rows]

    def codes(self, rows: Rows) -> list[Array]:
        return [codes[rows] for codes in self._codes]

    def targets(self, rows: Rows) -> Array:
        return self._targets[rows]

    def column(self, name: str) -> Array:
        return column_in(self._frame, name, self._where).to_numpy()

    def row_id(self, row: int) -> int:
        return int(self._rows[row])


def place(where: str, row: int, column: str) -> str:
    """Return how messages name a cell; `row` counts from 0, messages from 1."""
    return f"{where} row {row + 1} column {column}"


def column_in(frame: pd.DataFrame, column: str, where: str) -> pd.Series[Any]:
    """Return a column of a table.

    Raises:
        DataError: There is none of this name; names the nearest.
    """
    check_columns(list(frame.columns), [column], where)
    return frame[column]


def check_class(where: str, column: str, targets: Sequence[str], classify: bool | None) -> None:
    """Check that a target that is text may be a class.

    Raises:
        DataError: It is said to be none, or is not alone.
    """
    if classify is False or len(targets) > 1:
        raise class_error(where, column)


def class_error(where: str, column: str) -> DataError:
    """Return what is said of a target that is text where that does not go."""
    return DataError(f"{where}: target column {column} is a class: it must be the only target, and unscaled")


def check_missing(where: str, row: int, column: str, count: int, num_rows: int, missing: str) -> None:
    """Say what becomes of rows with an empty cell.

    Args:
        where: What messages call the table.
        row: The first of them.
        column: Where it is empty.
        count: How many there are.
        num_rows: Of so many.
        missing: `error`, `drop` or `fill`.

    Raises:
        DataError: They are not to be there, or are all there is.
    """
    if missing != "drop":
        raise DataError(f"{place(where, row, column)}: empty; {count} such rows; missing: drop leaves them out")
    if count == num_rows:
        raise DataError(f"{where}: every row has an empty cell; none is left")
    logging.getLogger(__name__).info("%s: %d of %d rows have an empty cell and are dropped", where, count, num_rows)


def not_a_number(where: str, row: int, column: str, text: Any) -> DataError:
    """Return what is said of a text among numbers."""
    hint = "if it is a category, list the column under categorical"
    return DataError(f"{place(where, row, column)}: {text!r} is not a number; {hint}")


def _without_missing(frame: pd.DataFrame, columns: list[str], where: str, missing: str) -> pd.DataFrame:
    empty = frame[columns].isna()
    rows = empty.any(axis=1).to_numpy()
    if not rows.any():
        return frame
    row = int(rows.argmax())
    column = columns[int(empty.iloc[row].to_numpy().argmax())]
    check_missing(where, row, column, int(rows.sum()), len(rows), missing)
    return frame[~rows]


def _texts(column: pd.Series[Any]) -> Array:
    """Return categories as text; whole numbers are spelt without a point, which an empty cell in the column adds."""
    texts = column.astype(str)
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        texts = column.astype("Int64").astype(str)
    return texts.where(column.notna(), EMPTY).to_numpy(object)


def _numbers(column: pd.Series[Any], where: str) -> Array | None:
    """Return a column as float64 [rows], finite but for empty cells, which are nan; or None if it is text."""
    present = column.notna().to_numpy()
    if not present.all():
        values = np.full(len(column), np.nan)
        if present.any() or column.dtype.kind != "f":
            known = _numbers(column[present], where)
            if known is None:
                return None
            values[present] = known
        return values
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.isnan(values)
    if bad.all():
        return None
    if not np.isfinite(values).all():
        at = int((~np.isfinite(values)).argmax())
        row, name = int(column.index[at]), str(column.name)
        if bad[at]:
            raise not_a_number(where, row, name, column.iloc[at])
        raise DataError(f"{place(where, row, name)}: {column.iloc[at]} is not finite")
    return values
