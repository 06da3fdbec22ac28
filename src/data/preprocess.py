"""scikit-learn preprocessing, learned from some rows and kept as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.utils.errors import ConfigError, DataError

PACKAGE = "sklearn.preprocessing"
Array = np.ndarray[Any, Any]


class Scaler:
    """A scikit-learn preprocessing class by name, for columns of numbers.

    Args:
        name: `StandardScaler`, `MinMaxScaler`, `RobustScaler`, `PowerTransformer`, ...; None leaves values alone.
        args: Arguments of that class.
        where: Key of the config, for messages.

    Raises:
        ConfigError: There is no such class, or not with these arguments.
    """

    def __init__(self, name: str | None, args: Mapping[str, Any] | None = None, where: str = "inputs") -> None:
        self.name = name
        self.estimator = None if name is None else _make(name, dict(args or {}), where)

    @property
    def learns_in_parts(self) -> bool:
        """Whether rows may come in several parts."""
        return hasattr(self.estimator, "partial_fit")

    def fit(self, values: Array, goes_on: bool = False) -> None:
        """Learn from `values`, float64 [rows, F].

        Args:
            values: Rows.
            goes_on: They come on top of the rows before. Only where it `learns_in_parts`.

        Raises:
            ConfigError: The class does not take its arguments, or these values.
        """
        if self.estimator is not None and values.shape[1]:
            try:
                (self.estimator.partial_fit if goes_on else self.estimator.fit)(values)
            except ValueError as error:  # scikit-learn checks arguments only here
                raise ConfigError(f"{self.name}: {error}") from error

    def transform(self, values: Array) -> Array:
        """Return `values` [rows, F] scaled."""
        if self.estimator is None or not values.shape[1]:
            return values
        scaled = self.estimator.transform(values)
        return np.asarray(scaled.todense() if hasattr(scaled, "todense") else scaled)

    def undo(self, values: Array) -> Array:
        """Return scaled `values` [rows, F] in their own units.

        Raises:
            DataError: The class cannot be undone.
        """
        if self.estimator is None:
            return values
        if not hasattr(self.estimator, "inverse_transform"):
            raise DataError(f"{self.name} cannot be undone; use another preprocessing for the target")
        return np.asarray(self.estimator.inverse_transform(values))

    def state_dict(self) -> dict[str, Any]:
        """Return name, arguments and what was learned: tensors and plain data."""
        return {} if self.estimator is None else _packed(self.estimator)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described."""
        self.name = state.get("name")
        self.estimator = _unpacked(state) if state else None


class Filler:
    """Empty cells of number columns: the median of the training rows, and a mark in each column that had some there.

    Until it is fitted it leaves values alone.
    """

    def __init__(self) -> None:
        self.medians: Array | None = None
        self.marked: list[int] = []

    def fit(self, values: Array, is_marked: Array) -> None:
        """Learn from `values`, float64 [rows, F], nan where a cell is empty.

        Args:
            values: What medians are taken of.
            is_marked: Which columns have an empty cell in any training row, bool [F].
        """
        empty = np.isnan(values)
        self.medians = np.array(
            [np.median(c[~e]) if not e.all() else 0.0 for c, e in zip(values.T, empty.T, strict=True)]
        )
        self.marked = np.flatnonzero(is_marked).tolist()

    def transform(self, values: Array) -> Array:
        """Return `values` [rows, F] without empty cells."""
        return values if self.medians is None else np.where(np.isnan(values), self.medians, values)

    def marks(self, values: Array) -> Array:
        """Return 1 where a cell of a marked column is empty, else 0: float64 [rows, marked columns]."""
        return np.isnan(values[:, self.marked]).astype(np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned: tensors and plain data."""
        return {} if self.medians is None else {"medians": torch.from_numpy(self.medians), "marked": self.marked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described."""
        self.medians = state["medians"].numpy() if state else None
        self.marked = list(state["marked"]) if state else []


def _make(name: str, args: dict[str, Any], where: str) -> Any:
    from sklearn import preprocessing

    known = [each for each in preprocessing.__all__ if hasattr(getattr(preprocessing, each), "transform")]
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"{where}: no {name!r} in {PACKAGE}; {hint}")
    chosen = getattr(preprocessing, name)
    for key, parameter in inspect.signature(chosen).parameters.items():
        if isinstance(parameter.default, tuple) and isinstance(args.get(key), list):
            args[key] = tuple(args[key])  # YAML has lists only
    try:
        return chosen(**args)
    except TypeError as error:
        raise ConfigError(f"{where}: {name}: {error}") from error


def _packed(value: Any) -> Any:
    """Return `value` as tensors and plain data; scikit-learn's preprocessing objects become mappings."""
    if type(value).__module__.startswith(PACKAGE):
        args = {key: _packed(each) for key, each in value.get_params(deep=False).items()}
        learned = {key: _packed(each) for key, each in vars(value).items() if key not in args}
        return {"name": type(value).__name__, "args": args, "learned": learned}
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "OUS" else torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_packed(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _packed(each) for key, each in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise DataError(f"{type(value).__name__} in scikit-learn preprocessing cannot be saved as plain data")


def _unpacked(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().copy()
    if isinstance(value, Mapping) and {"name", "args", "learned"} <= set(value):
        estimator = _make(value["name"], {key: _unpacked(each) for key, each in value["args"].items()}, "checkpoint")
        vars(estimator).update({key: _unpacked(each) for key, each in value["learned"].items()})
        return estimator
    if isinstance(value, list):
        return [_unpacked(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _unpacked(each) for key, each in value.items()}
    return value
