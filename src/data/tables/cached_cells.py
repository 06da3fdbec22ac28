"""What a table holds that is converted to memory-mapped arrays: only the rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from src.data.tables.cells import (
    EMPTY,
    Array,
    Choice,
    Rows,
    check_class,
    check_missing,
    not_a_number,
    place,
)
from src.data.tables.column_cache import ColumnCache
from src.data.tables.columns import check_columns
from src.data.tables.convert_csv import Column
from src.utils.errors import DataError

CHUNK_BYTES = 1 << 25
"""Of numbers read at once."""


class CachedCells:
    """A cached table; see `Cells`."""

    def __init__(self, cache: ColumnCache, choice: Choice) -> None:
        features, targets, classify = choice.features, choice.targets, choice.classify
        self._cache = cache
        self._where = choice.where
        self.chunk_rows = max(1, CHUNK_BYTES // (8 * max(1, len(cache.columns))))
        self._rows: Array | None = None
        self._leave_out(choice.needed, choice.missing)
        self._values: dict[str, Array] = {}
        self.number_names = [c for c in features if c not in choice.categorical and self._is_number(c)]
        texts = [c for c in features if c not in self.number_names]
        self._known: dict[str, Array] = {}
        self.vocabularies = {c: self._vocabulary(c) for c in texts}
        self._targets = [c for c in targets if not classify and self._is_number(c)]
        self.class_names: list[str] | None = None
        self.class_codes: Array | None = None
        if len(self._targets) < len(targets):
            check_class(choice.where, next(c for c in targets if c not in self._targets), targets, classify)
            self.class_names, self.class_codes = self._classes(targets[0])

    def _leave_out(self, names: Sequence[str], missing: str) -> None:
        """Look for rows with an empty cell, in columns that have any."""
        columns = [self._cache.by_name[name] for name in names if self._cache.by_name[name].num_empty]
        if not columns:
            return
        empty = np.zeros(len(self._cache), dtype=bool)
        for rows in self._slices(len(self._cache)):
            for column in columns:
                empty[rows] |= self._is_empty(column, rows)
        row = int(empty.argmax())
        first = next(c.name for c in columns if self._is_empty(c, slice(row, row + 1))[0])
        check_missing(self._where, row, first, int(empty.sum()), len(empty), missing)
        self._rows = np.flatnonzero(~empty)

    def _is_empty(self, column: Column, rows: slice) -> Array:
        if column.kind == "text":
            return np.asarray(self._cache.codes[rows, column.index] < 0)
        return np.asarray(np.isnan(self._cache.numbers[rows, column.index]))

    def _slices(self, num_rows: int) -> Iterator[slice]:
        for first in range(0, num_rows, self.chunk_rows):
            yield slice(first, min(first + self.chunk_rows, num_rows))

    def _is_number(self, name: str) -> bool:
        """Return whether a column can be read as numbers.

        Raises:
            DataError: Some cells are numbers, others are not; or one is not finite.
        """
        column = self._cache.by_name[name]
        if column.kind != "text":
            for rows in self._slices(len(self)) if column.has_infinite else ():
                values = self._cache.numbers[self._in_file(rows), column.index]
                if (infinite := np.isinf(values)).any():
                    at = int(infinite.argmax())
                    row = self.row_id(rows.start + at)
                    raise DataError(f"{place(self._where, row, name)}: {values[at]} is not finite")
            return True
        if not column.is_exact:
            raise self._too_many(name)
        values = pd.to_numeric(pd.Series(column.texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
        bad = ~np.isfinite(values)
        present = self._texts_present(column)
        if np.isnan(values[present]).all():
            return False
        if bad[present].any():
            row, code = self._first_of(column, bad & present)
            if np.isnan(values[code]):
                raise not_a_number(self._where, row, name, column.texts[code])
            raise DataError(f"{place(self._where, row, name)}: {column.texts[code]} is not finite")
        self._values[name] = np.append(values, np.nan)  # an empty cell is code -1
        return True

    def _too_many(self, name: str) -> DataError:
        return DataError(
            f"{self._where}: column {name} has too many different texts, or too large whole numbers, for the cache; "
            "list it under ignore, or read the table into memory with cache: false"
        )

    def _texts_present(self, column: Column) -> Array:
        """Return which texts of a column are in any of the rows that are left."""
        present = np.zeros(len(column.texts) + 1, dtype=bool)
        if self._rows is None:
            present[:-1] = True
            return present[:-1]
        for rows in self._slices(len(self)):
            present[self._cache.codes[self._rows[rows], column.index]] = True
        return present[:-1]

    def _first_of(self, column: Column, wanted: Array) -> tuple[int, int]:
        """Return the first row that is left with one of the `wanted` texts, by its number in the file, and its code."""
        for rows in self._slices(len(self)):
            codes = self._cache.codes[self._in_file(rows), column.index]
            found = np.append(wanted, False)[codes]
            if found.any():
                at = int(found.argmax())
                return self.row_id(rows.start + at), int(codes[at])
        raise AssertionError("no row has such a text")

    def _vocabulary(self, name: str) -> Array:
        """Return what the codes of a feature mean."""
        column = self._cache.by_name[name]
        if not column.is_exact:
            raise self._too_many(name)
        if column.kind == "text":
            return np.array([*column.texts, EMPTY], dtype=object)
        known: Array = np.empty(0)
        for rows in self._slices(len(self)):
            values = self._cache.numbers[self._in_file(rows), column.index]
            known = np.union1d(known, values[~np.isnan(values)])
        self._known[name] = known
        return np.array([*_spelt(known, column.kind), EMPTY], dtype=object)

    def _classes(self, name: str) -> tuple[list[str], Array]:
        """Return the names of classes in their order, and the class of each row."""
        column = self._cache.by_name[name]
        names = self._vocabulary(name)[:-1]
        order = np.arange(len(names))
        if column.kind == "text":
            present = self._texts_present(column)
            order = np.flatnonzero(present)[np.argsort(names[present], kind="stable")]
        elif not (column.is_whole or column.kind == "boolean"):
            names = self._known[name]
        places = np.zeros(len(names), dtype=np.int64)
        places[order] = np.arange(len(order))
        codes = np.empty(len(self), dtype=np.int64)
        for rows in self._slices(len(self)):
            codes[rows] = places[self._codes_of(column, rows)]
        return [str(name) for name in names[order]], codes

    def _in_file(self, rows: Rows) -> Rows:
        return rows if self._rows is None else self._rows[rows]

    def __len__(self) -> int:
        return len(self._cache) if self._rows is None else len(self._rows)

    def numbers(self, rows: Rows) -> Array:
        return self._numbers_of(self.number_names, rows)

    def targets(self, rows: Rows) -> Array:
        return self._numbers_of(self._targets, rows)

    def _numbers_of(self, names: Sequence[str], rows: Rows) -> Array:
        places = self._in_file(rows)
        columns = [self._cache.by_name[name] for name in names]
        picked = [column.index for column in columns if column.kind != "text"]
        whole = self._cache.numbers[places]  # whole rows first: each lies in one piece
        if len(picked) == len(columns):
            return whole if picked == list(range(whole.shape[1])) else whole[:, picked]
        values = np.empty((len(whole), len(columns)))
        for at, column in enumerate(columns):
            if column.kind == "text":
                values[:, at] = self._values[column.name][self._cache.codes[places, column.index]]
            else:
                values[:, at] = whole[:, column.index]
        return values

    def codes(self, rows: Rows) -> list[Array]:
        return [self._codes_of(self._cache.by_name[name], rows) for name in self.vocabularies]

    def _codes_of(self, column: Column, rows: Rows) -> Array:
        places = self._in_file(rows)
        if column.kind == "text":
            codes = self._cache.codes[places, column.index]
            return np.where(codes < 0, len(column.texts), codes)
        values, known = self._cache.numbers[places, column.index], self._known[column.name]
        return np.where(np.isnan(values), len(known), np.searchsorted(known, values))

    def column(self, name: str) -> Array:
        check_columns(self._cache.columns, [name], self._where)
        column = self._cache.by_name[name]
        if not column.is_exact:
            raise self._too_many(name)
        if column.kind == "text":
            texts = np.array([*column.texts, np.nan], dtype=object)
            return texts[self._cache.codes[self._in_file(slice(None)), column.index]]
        values = self._cache.numbers[self._in_file(slice(None)), column.index]
        if column.kind == "boolean":
            is_empty = np.isnan(values)
            return np.where(is_empty, np.nan, (values > 0).astype(object)) if is_empty.any() else values > 0
        return values.astype(np.int64) if column.is_whole else values.copy()

    def row_id(self, row: int) -> int:
        return row if self._rows is None else int(self._rows[row])


def _spelt(values: Array, kind: str) -> list[str]:
    """Return numbers as the texts that pandas makes of them; whole ones have no point."""
    if kind == "boolean":
        return [str(bool(value)) for value in values]
    if (values % 1 == 0).all():
        return [str(int(value)) for value in values]
    return [str(float(value)) for value in values]
