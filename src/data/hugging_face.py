"""Hugging Face datasets on disk: `data: {type: hugging_face.Saved, args: {folder: data/imdb, inputs: text}}`.

Needs the package `datasets`, the extra `hf`. Nothing is downloaded and no code of the dataset is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from src.utils.errors import ConfigError, DataError
from src.utils.packages import not_installed
from src.utils.paths import project_path, shown_path


class Saved(Dataset[Any]):
    """What `save_to_disk` of Hugging Face's `datasets` wrote; it is memory-mapped and may be larger than memory.

    A sample is `(inputs, target)`; `(first, second, ..., target)` for several inputs; `inputs` without a target; or a
    dict of all columns when `inputs` is not given. Numbers are tensors, text is text.

    Args:
        folder: Relative to the project.
        part: Of a folder of several, e.g. `train`.
        inputs: Column, or columns, of the inputs.
        targets: Column to predict.

    Raises:
        ConfigError: The package is not installed, or `part` is needed.
        DataError: There is no such folder or column.
    """

    def __init__(
        self,
        folder: str,
        part: str | None = None,
        inputs: str | Sequence[str] | None = None,
        targets: str | None = None,
    ) -> None:
        try:
            from datasets import DatasetDict, load_from_disk
        except ImportError:
            raise ConfigError(not_installed("data: hugging_face", "datasets")) from None
        path = project_path(folder)
        self.where = shown_path(path)
        try:
            loaded = load_from_disk(str(path))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.where}: no dataset saved by save_to_disk: {error}") from error
        if isinstance(loaded, DatasetDict):
            if part not in loaded:
                raise ConfigError(f"Saved part: {part!r}; {self.where} has {', '.join(map(str, loaded))}")
            loaded = loaded[part]
        elif part is not None:
            raise ConfigError(f"Saved part: {part!r}; {self.where} has no parts; leave it out")
        self.input_names = [inputs] if isinstance(inputs, str) else list(inputs or [])
        self.target_name = targets
        chosen = [*self.input_names, *([targets] if targets else [])]
        for name in chosen:
            if name not in loaded.column_names:
                raise DataError(f"{self.where}: no column {name!r}; there are {', '.join(loaded.column_names)}")
        self._all = loaded
        self._rows = (loaded.select_columns(chosen) if self.input_names else loaded).with_format("numpy")
        names = getattr(loaded.features.get(targets), "names", None) if targets else None
        self.class_names: list[str] | None = list(names) if names else None
        if names:
            self.num_classes = len(names)

    @property
    def targets(self) -> Tensor | None:
        """The column of targets, if there is one."""
        return None if self.target_name is None else torch.as_tensor(self.column(self.target_name))

    def column(self, name: str) -> Any:
        """Return a column, to split by.

        Raises:
            DataError: There is none of this name.
        """
        if name not in self._all.column_names:
            raise DataError(f"{self.where}: no column {name!r}; there are {', '.join(self._all.column_names)}")
        return np.asarray(self._all.select_columns([name]).with_format("numpy")[:][name])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        return self._sample({name: _value(value) for name, value in self._rows[row].items()})

    def __getitems__(self, rows: list[int]) -> list[Any]:
        columns = self._rows[rows]
        return [self._sample({name: _value(values[at]) for name, values in columns.items()}) for at in range(len(rows))]

    def read_batch(self, rows: Tensor) -> Any:
        """Return the batch of these rows; columns whose rows differ in size cannot be put together."""
        columns = self._rows[rows.tolist()]
        return self._sample({name: _column(values) for name, values in columns.items()})

    def _sample(self, columns: dict[str, Any]) -> Any:
        if not self.input_names:
            return columns
        values = tuple(columns[name] for name in self.input_names)
        if self.target_name is not None:
            return (*values, columns[self.target_name])
        return values if len(values) > 1 else values[0]


def _value(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return torch.as_tensor(np.asarray(value).copy())
    return value.item() if isinstance(value, np.generic) else value


def _column(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return torch.from_numpy(values.copy())
    return default_collate([_value(value) for value in values])
