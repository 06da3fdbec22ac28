"""A pandas table as a dataset: numbers scaled, categories one-hot, all learned from the training rows only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.classes import renumbered
from src.data.preprocess import Filler, Scaler
from src.utils.errors import ConfigError, DataError

Scaling = str | Mapping[str, Any] | None
"""`StandardScaler`, or `{type: MinMaxScaler, args: {feature_range: [-1, 1]}}`."""
Missing = Literal["error", "drop", "fill"]
EMPTY = "(empty)"
"""The category of empty cells that are filled."""


class FrameDataset(Dataset[Any]):
    """Rows of a table, as `(features, target)`, or `features` alone when there is no target.

    Shapes: features float32 [F]; target float32 [T] of one or more number columns, or int64 [] for a class.
    F counts the number columns first, in their order, then marks of empty cells, then one column per category: see
    `feature_names`.

    Args:
        frame: The table, with unique column names.
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
        frame: pd.DataFrame,
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
        chosen = list(features) if features is not None else [*frame.columns]
        chosen = [c for c in chosen if c not in (*self.target_names, *ignore)]
        for column in [*chosen, *categorical, *ignore, *self.target_names]:
            column_in(frame, column, where)
        needed = self.target_names if missing == "fill" else [*chosen, *self.target_names]
        frame = _without_missing(frame, needed, where, missing)
        self._frame = frame
        self._rows = frame.index.to_numpy()
        numbers = {c: _numbers(frame[c], where) for c in chosen if c not in categorical}
        self.number_names = [c for c, values in numbers.items() if values is not None]
        self._numbers = np.column_stack([np.empty((len(frame), 0)), *(v for v in numbers.values() if v is not None)])
        self._texts = {c: _texts(frame[c]) for c in chosen if numbers.get(c) is None}
        self._fills = missing == "fill"
        self._filler = Filler()
        self._input_scaler = _scaler(scale_inputs, "scale_inputs")
        self._target_scaler = _scaler(scale_target, "scale_target")
        self.class_names: list[str] | None = None
        self.targets: Tensor | None = None
        self._raw_targets = self._read_targets(frame, classify)
        self._categories: dict[str, list[str]] = {}
        self._features: Tensor | None = None
        if not (self._texts or scale_inputs or scale_target or self._fills):
            self._apply()

    def _read_targets(self, frame: pd.DataFrame, classify: bool | None) -> np.ndarray[Any, Any]:
        """Return the targets in their own units, float64 [rows, T]; classes are kept in `targets` instead."""
        columns = [_numbers(frame[c], self.where) if not classify else None for c in self.target_names]
        texts = [name for name, column in zip(self.target_names, columns, strict=True) if column is None]
        if not texts:
            raw = np.column_stack([np.empty((len(frame), 0)), *(c for c in columns if c is not None)])
            self.targets = torch.from_numpy(raw.astype(np.float32)) if self.target_names else None
            return raw
        if classify is False or len(self.target_names) > 1 or self._target_scaler.name:
            raise DataError(
                f"{self.where}: target column {texts[0]} is a class: it must be the only target, and unscaled"
            )
        names, codes = np.unique(frame[texts[0]].to_numpy(), return_inverse=True)
        self.class_names = [str(name) for name in names]
        self.num_classes = len(names)
        self.targets = torch.from_numpy(codes)
        return np.empty((len(frame), 0))

    def fit(self, rows: Tensor) -> None:
        """Learn what fills empty cells, scaling and categories from these rows, and no others."""
        numbers = rows.numpy()
        if self._fills:
            self._filler.fit(self._numbers[numbers])
        self._input_scaler.fit(self._filler.transform(self._numbers[numbers]))
        self._target_scaler.fit(self._raw_targets[numbers])
        self._categories = {c: sorted(set(texts[numbers])) for c, texts in self._texts.items()}
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return what `fit` learned."""
        return {
            "numbers": self.number_names,
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
        expected, found = [*state["numbers"], *state["categories"]], [*self.number_names, *self._texts]
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
            self.targets, self.class_names, names, lambda row: place(self.where, self._rows[row], self.target_names[0])
        )
        self.class_names, self.num_classes = list(names), len(names)

    def _apply(self) -> None:
        """Make the tensors that are read from."""
        columns = [self._input_scaler.transform(self._filler.transform(self._numbers))]
        names = self.number_names if columns[0].shape[1] == len(self.number_names) else []
        self.feature_names = list(names or (f"input_{i}" for i in range(columns[0].shape[1])))
        columns.append(self._filler.marks(self._numbers))
        self.feature_names += [f"{self.number_names[index]} is empty" for index in self._filler.marked]
        for column, texts in self._texts.items():
            categories = self._categories[column]
            columns.append(texts[:, None] == np.array(categories, dtype=object)[None, :])
            self.feature_names += [f"{column}={category}" for category in categories]
            unseen = ~columns[-1].any(axis=1)
            if unseen.any():
                logging.getLogger("keel").warning(
                    "%s column %s: %r is in none of the training rows; %d such rows are read as no category",
                    self.where, column, texts[unseen][0], unseen.sum(),
                )  # fmt: skip
        self._features = torch.from_numpy(np.column_stack(columns).astype(np.float32))
        self.num_features = self._features.shape[1]
        if self.class_names is None and self.target_names:
            self.targets = torch.from_numpy(self._target_scaler.transform(self._raw_targets).astype(np.float32))

    @property
    def features(self) -> Tensor:
        """The inputs, float32 [rows, F]."""
        if self._features is None:
            raise DataError(f"{self.where}: call fit(rows) with the training rows first")
        return self._features

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        return self.features[row] if self.targets is None else (self.features[row], self.targets[row])

    def read_batch(self, rows: Tensor) -> Any:
        """Return features [N, F] and, if there is a target, targets [N, T] or [N]."""
        features = self.features.index_select(0, rows)
        return features if self.targets is None else (features, self.targets.index_select(0, rows))

    def decode(self, outputs: Tensor) -> np.ndarray[Any, Any]:
        """Return predictions [N, T] in the target's own units."""
        values = outputs.detach().cpu().double().numpy().reshape(len(outputs), -1)
        return self._target_scaler.undo(values)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return a column of the table as it is, whether it is a feature or not: to split by.

        Raises:
            DataError: There is none of this name.
        """
        return column_in(self._frame, name, self.where).to_numpy()

    def content(self, rows: Tensor) -> Any:
        """Return the features of these rows before preprocessing: what makes two rows the same."""
        numbers = rows.numpy()
        return (self._numbers[numbers], *(texts[numbers] for texts in self._texts.values()))

    def cells(self, row: int) -> dict[str, Any]:
        """Return the features of a row as the file has them, by column, for people to read."""
        numbers = dict(zip(self.number_names, self._numbers[row].tolist(), strict=True))
        return numbers | {column: texts[row] for column, texts in self._texts.items()}

    def row_id(self, row: int) -> int:
        """Return the row's number in the file, from 0: another one than `row` when rows were dropped."""
        return int(self._rows[row])


def place(where: str, row: int, column: str) -> str:
    """Return how messages name a cell; `row` counts from 0, messages from 1."""
    return f"{where} row {row + 1} column {column}"


def column_in(frame: pd.DataFrame, column: str, where: str) -> pd.Series[Any]:
    """Return a column of a table.

    Raises:
        DataError: There is none of this name; names the nearest.
    """
    if column not in frame.columns:
        near = get_close_matches(str(column), [str(each) for each in frame.columns], 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(map(str, frame.columns))}"
        raise DataError(f"{where}: no column {column!r}; {hint}")
    return frame[column]


def _without_missing(frame: pd.DataFrame, columns: list[str], where: str, missing: str) -> pd.DataFrame:
    empty = frame[columns].isna()
    rows = empty.any(axis=1).to_numpy()
    if not rows.any():
        return frame
    if missing == "error":
        row = int(rows.argmax())
        column = columns[int(empty.iloc[row].to_numpy().argmax())]
        raise DataError(f"{place(where, row, column)}: empty; {rows.sum()} such rows; missing: drop leaves them out")
    if rows.all():
        raise DataError(f"{where}: every row has an empty cell; none is left")
    logging.getLogger("keel").info("%s: %d of %d rows have an empty cell and are dropped", where, rows.sum(), len(rows))
    return frame[~rows]


def _texts(column: pd.Series[Any]) -> np.ndarray[Any, Any]:
    """Return categories as text; whole numbers are spelt without a point, which an empty cell in the column adds."""
    texts = column.astype(str)
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        texts = column.astype("Int64").astype(str)
    return texts.where(column.notna(), EMPTY).to_numpy(object)


def _numbers(column: pd.Series[Any], where: str) -> np.ndarray[Any, Any] | None:
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
        cell = place(where, int(column.index[at]), str(column.name))
        if bad[at]:
            raise DataError(
                f"{cell}: {column.iloc[at]!r} is not a number; if it is a category, list the column under categorical"
            )
        raise DataError(f"{cell}: {column.iloc[at]} is not finite")
    return values


def _scaler(given: Scaling, where: str) -> Scaler:
    if given is None or isinstance(given, str):
        return Scaler(given, where=where)
    if "type" not in given or set(given) - {"type", "args"}:
        raise ConfigError(f"{where}: {dict(given)}; use a name, or {{type: ..., args: {{...}}}}")
    return Scaler(given["type"], given.get("args"), where)
