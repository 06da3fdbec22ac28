"""A table as a dataset: numbers scaled, categories one-hot, all learned from the training rows only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.parts.classes import renumbered
from src.data.preprocess import Filler, Scaler
from src.data.tables.cached_cells import CachedCells
from src.data.tables.cells import Array, Cells, Choice, FrameCells, Rows, class_error, place
from src.data.tables.column_cache import ColumnCache
from src.data.tables.columns import check_columns, feature_columns
from src.utils.errors import ConfigError, DataError

Scaling = str | Mapping[str, Any] | None
"""`StandardScaler`, or `{type: MinMaxScaler, args: {feature_range: [-1, 1]}}`."""
Missing = Literal["error", "drop", "fill"]
PIECE_BYTES = 1 << 24
"""Prepared at once, as float64."""
KEPT_BYTES = 1 << 28
"""Prepared features of a cached table stay in memory if they are no more; else each batch is prepared when read."""


class FrameDataset(Dataset[Any]):
    """Rows of a table, as `(features, target)`, or `features` alone when there is no target.

    Shapes: features float32 [F]; target float32 [T] of one or more number columns, or int64 [] for a class.
    F counts the number columns first, in their order, then marks of empty cells, then one column per category: see
    `feature_names`.

    Args:
        frame: The table, with unique column names; or a `ColumnCache`, which is larger than memory.
        where: What messages call it: a path.
        target: Column or columns to predict; None if there is none.
        features: Columns to predict from; default all others.
        categorical: Columns of numbers that are categories nonetheless. Text columns always are.
        scale_inputs: scikit-learn preprocessing of the number columns.
        scale_target: scikit-learn preprocessing of the target, undone by `decode`.
        missing: Rows with an empty cell: `error`; `drop` them; or `fill` the cell: a number with the median of the
            training rows, marked in a column of its own, a category with one of its own.
        classify: Whether the target is a class; default: if it is text.
        ignore: Columns that are no features, though `features` does not say so.

    Raises:
        DataError: A column is not there, or a cell is not what its column needs; names row, line and column.
    """

    def __init__(
        self,
        frame: pd.DataFrame | ColumnCache,
        where: str,
        target: str | Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
        scale_inputs: Scaling = None,
        scale_target: Scaling = None,
        missing: Missing = "error",
        classify: bool | None = None,
        ignore: Sequence[str] = (),
    ) -> None:
        if missing not in ("error", "drop", "fill"):
            raise ConfigError(f"missing: {missing!r}; use error, drop or fill")
        self.where = where
        self.target_names = [target] if isinstance(target, str) else list(target or [])
        for argument, names in {"target": self.target_names, "categorical": categorical, "ignore": ignore}.items():
            check_columns(list(frame.columns), names, f"{argument}: {where}")
        chosen = feature_columns(list(frame.columns), features, self.target_names, ignore, where)
        self._input_scaler = _scaler(scale_inputs, "scale_inputs")
        self._target_scaler = _scaler(scale_target, "scale_target")
        choice = Choice(where, chosen, self.target_names, categorical, missing, classify)
        self._cells: Cells = CachedCells(frame, choice) if isinstance(frame, ColumnCache) else FrameCells(frame, choice)
        self._fills = missing == "fill"
        self._filler = Filler()
        self.class_names = self._cells.class_names
        self.targets: Tensor | None = None
        if self._cells.class_codes is not None:
            if self._target_scaler.name:
                raise class_error(where, self.target_names[0])
            self.num_classes = len(self.class_names or ())
            self.targets = torch.from_numpy(self._cells.class_codes)
        self._categories: dict[str, list[str]] = {}
        self._places: list[Array] = []
        self._features: Tensor | None = None
        self._is_ready = False
        if not (self._cells.vocabularies or scale_inputs or scale_target or self._fills):
            self._apply()
        elif self.target_names and self.class_names is None:
            self._apply_to_targets(Scaler(None))

    def fit(self, rows: Tensor) -> None:
        """Learn what fills empty cells, scaling and categories from these rows, and no others."""
        cells, numbers = self._cells, rows.numpy()
        if self._fills:
            some = cells.numbers(_spaced(numbers, cells.chunk_rows))
            empty = [np.isnan(cells.numbers(chunk)).any(axis=0) for chunk in self._chunks(numbers)]
            self._filler.fit(some, np.any(empty, axis=0))
        self._learn(self._input_scaler, numbers, lambda rows: self._filler.transform(cells.numbers(rows)))
        self._learn(self._target_scaler, numbers, cells.targets)
        self._categories = {}
        for index, (column, names) in enumerate(cells.vocabularies.items()):
            seen = np.zeros(len(names), dtype=bool)
            for chunk in self._chunks(numbers):
                seen[cells.codes(chunk)[index]] = True
            self._categories[column] = sorted(set(names[seen]))
        self._apply()

    def _learn(self, scaler: Scaler, rows: Array, read: Callable[[Array], Array]) -> None:
        """Fit in passes over the rows; what cannot be learned so, from rows at equal distances."""
        if scaler.learns_in_parts:
            for number, chunk in enumerate(self._chunks(rows)):
                scaler.fit(read(chunk), goes_on=number > 0)
        else:
            scaler.fit(read(_spaced(rows, self._cells.chunk_rows)))

    def _chunks(self, rows: Array) -> Iterator[Array]:
        for first in range(0, len(rows), self._cells.chunk_rows):
            yield rows[first : first + self._cells.chunk_rows]

    def state_dict(self) -> dict[str, Any]:
        """Return what `fit` learned."""
        return {
            "numbers": self._cells.number_names,
            "categories": self._categories,
            "filler": self._filler.state_dict(),
            "inputs": self._input_scaler.state_dict(),
            "target": self._target_scaler.state_dict(),
            "class_names": self.class_names,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what the training data taught.

        Raises:
            DataError: These are not the columns, or the classes, of the training data.
        """
        expected = [*state["numbers"], *state["categories"]]
        found = [*self._cells.number_names, *self._cells.vocabularies]
        if expected != found:
            raise DataError(f"{self.where}: feature columns {', '.join(found)}; training had {', '.join(expected)}")
        if self.class_names is not None and state["class_names"] is not None:
            self._take_classes(state["class_names"])
        self._categories = {column: list(names) for column, names in state["categories"].items()}
        self._filler.load_state_dict(state["filler"])
        self._input_scaler.load_state_dict(state["inputs"])
        self._target_scaler.load_state_dict(state["target"])
        self._apply()

    def _take_classes(self, names: list[str]) -> None:
        assert self.class_names is not None and self.targets is not None
        self.targets = renumbered(
            self.targets, self.class_names, names, lambda row: place(self.where, self.row_id(row), self.target_names[0])
        )
        self.class_names, self.num_classes = list(names), len(names)

    def _apply(self) -> None:
        """Make ready to read: the features of all rows, unless they are too many."""
        cells = self._cells
        self._places = [self._category_places(column, names) for column, names in cells.vocabularies.items()]
        width = self._input_scaler.transform(self._filler.transform(cells.numbers(slice(0, 1)))).shape[1]
        names = cells.number_names
        self.feature_names = list(names if width == len(names) else (f"input_{i}" for i in range(width)))
        self.feature_names += [f"{names[index]} is empty" for index in self._filler.marked]
        for column, categories in self._categories.items():
            self.feature_names += [f"{column}={category}" for category in categories]
        self.num_features = len(self.feature_names)
        self._is_ready = True
        is_large = isinstance(cells, CachedCells) and 4 * len(self) * self.num_features > KEPT_BYTES
        self._features = None if is_large else self._all_rows(self._prepared, self.num_features)
        self._tell_unseen()
        if self.class_names is None and self.target_names:
            self._apply_to_targets(self._target_scaler)

    def _apply_to_targets(self, scaler: Scaler) -> None:
        def scaled(rows: Rows) -> Tensor:
            return torch.from_numpy(scaler.transform(self._cells.targets(rows)).astype(np.float32))

        self.targets = self._all_rows(scaled, scaled(slice(0, 1)).shape[1])

    def _category_places(self, column: str, names: Array) -> Array:
        """Return the place of each text of a column among its categories; -1 if it is none of them."""
        places = {category: place for place, category in enumerate(self._categories[column])}
        return np.array([places.get(name, -1) for name in names], dtype=np.int64)

    def _tell_unseen(self) -> None:
        for index, (column, names) in enumerate(self._cells.vocabularies.items()):
            count, first = 0, ""
            for rows in self._slices(1) if (self._places[index] < 0).any() else ():
                codes = self._cells.codes(rows)[index]
                unseen = self._places[index][codes] < 0
                if unseen.any():
                    first = first if count else names[codes[unseen.argmax()]]
                    count += int(unseen.sum())
            if count:
                logging.getLogger(__name__).warning(
                    "%s column %s: %r is in none of the training rows; %d such rows are read as no category",
                    self.where, column, first, count,
                )  # fmt: skip

    def _prepared(self, rows: Rows) -> Tensor:
        """Return the features of some rows, float32 [N, F]."""
        raw = self._cells.numbers(rows)
        columns = [self._input_scaler.transform(self._filler.transform(raw)), self._filler.marks(raw)]
        for codes, places, known in zip(self._cells.codes(rows), self._places, self._categories.values(), strict=True):
            columns.append(places[codes][:, None] == np.arange(len(known))[None, :])
        return torch.from_numpy(np.column_stack(columns).astype(np.float32))

    def _all_rows(self, prepared: Callable[[Rows], Tensor], width: int) -> Tensor:
        """Return what `prepared` gives for all rows, float32 [rows, width], never holding more than a piece twice."""
        whole = torch.empty(len(self), width)
        for rows in self._slices(width):
            whole[rows] = prepared(rows)
        return whole

    def _slices(self, width: int) -> Iterator[slice]:
        size = max(1, PIECE_BYTES // (8 * max(1, width)))
        return (slice(first, min(first + size, len(self))) for first in range(0, len(self), size))

    @property
    def features(self) -> Tensor:
        """The inputs, float32 [rows, F]."""
        if not self._is_ready:
            raise DataError(f"{self.where}: call fit(rows) with the training rows first")
        return self._features if self._features is not None else self._all_rows(self._prepared, self.num_features)

    @property
    def is_on_disk(self) -> bool:
        """Whether batches are read from memory-mapped arrays."""
        return self._is_ready and self._features is None

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, row: int) -> Any:
        batch = self.read_batch(torch.tensor([row]))
        return batch[0] if self.targets is None else tuple(values[0] for values in batch)

    def read_batch(self, rows: Tensor) -> Any:
        """Return features [N, F] and, if there is a target, targets [N, T] or [N]."""
        features = self._prepared(rows.numpy()) if self.is_on_disk else self.features.index_select(0, rows)
        return features if self.targets is None else (features, self.targets.index_select(0, rows))

    @property
    def scales_target(self) -> bool:
        """Whether targets are in other units than their own."""
        return self._target_scaler.name is not None

    def decode(self, outputs: Tensor) -> Array:
        """Return predictions [N, T] in the target's own units."""
        values = outputs.detach().cpu().double().numpy().reshape(len(outputs), -1)
        return self._target_scaler.undo(values)

    def column(self, name: str) -> Array:
        """Return a column of the table as it is, whether it is a feature or not: to split by.

        Raises:
            DataError: There is none of this name.
        """
        return self._cells.column(name)

    def content(self, rows: Tensor) -> Any:
        """Return the features of these rows before preprocessing: what makes two rows the same."""
        return (self._cells.numbers(rows.numpy()), *self._texts(rows.numpy()))

    def cells(self, row: int) -> dict[str, Any]:
        """Return the features of a row as the file has them, by column, for people to read."""
        rows = np.array([row])
        numbers = dict(zip(self._cells.number_names, self._cells.numbers(rows)[0].tolist(), strict=True))
        texts = (column[0] for column in self._texts(rows))
        return numbers | dict(zip(self._cells.vocabularies, texts, strict=True))

    def _texts(self, rows: Array) -> list[Array]:
        vocabularies = self._cells.vocabularies.values()
        return [names[codes] for names, codes in zip(vocabularies, self._cells.codes(rows), strict=True)]

    def row_id(self, row: int) -> int:
        """Return the row's number in the file, from 0: another one than `row` when rows were dropped."""
        return self._cells.row_id(row)


def _spaced(rows: Array, count: int) -> Array:
    """Return `count` of `rows` at equal distances, or all of them if they are no more."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _scaler(given: Scaling, where: str) -> Scaler:
    if given is None or isinstance(given, str):
        return Scaler(given, where=where)
    if "type" not in given or set(given) - {"type", "args"}:
        raise ConfigError(f"{where}: {dict(given)}; use a name, or {{type: ..., args: {{...}}}}")
    return Scaler(given["type"], given.get("args"), where)
