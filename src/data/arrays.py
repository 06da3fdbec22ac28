"""Tensors and NumPy files as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.packed import check_unpacked
from src.utils.errors import ConfigError, DataError
from src.utils.paths import project_path, shown_path

Source = str | Path | Tensor | np.ndarray[Any, Any]


class Arrays(Dataset[Any]):
    """Rows of arrays: `(inputs, targets)`, or `inputs` alone. Rows keep the type they have in the file.

    A `.npy` file is memory-mapped: it may be larger than memory, and workers share its pages.

    Args:
        inputs: `.npy` file, `file.npz` with one array, `file.npz:name`, or, in Python, an array or tensor; [rows, ...].
        targets: The same; [rows] or [rows, ...].
        dtype: Type that inputs are converted to when they are read, such as `float32`.

    Raises:
        DataError: A file is missing, damaged, holds Python objects, or has another number of rows.
    """

    def __init__(self, inputs: Source, targets: Source | None = None, dtype: str | None = None) -> None:
        self.inputs = _open(inputs, "inputs")
        self.targets = None if targets is None else _open(targets, "targets")
        if self.targets is not None and len(self.targets) != len(self.inputs):
            raise DataError(f"Arrays: inputs have {len(self.inputs)} rows, targets {len(self.targets)}")
        self._dtype = getattr(torch, dtype, None) if dtype is not None else None
        if dtype is not None and not isinstance(self._dtype, torch.dtype):
            raise ConfigError(f"Arrays dtype: {dtype!r}; use float32, float16, int64, ...")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Any:
        inputs = self._converted(torch.as_tensor(self.inputs[row]))
        return inputs if self.targets is None else (inputs, self.targets[row])

    def read_batch(self, rows: Tensor) -> Any:
        """Return inputs [N, ...] and targets [N, ...]."""
        inputs = self._converted(self.inputs.index_select(0, rows))
        return inputs if self.targets is None else (inputs, self.targets.index_select(0, rows))

    def _converted(self, inputs: Tensor) -> Tensor:
        return inputs if self._dtype is None else inputs.to(self._dtype)


def _open(source: Source, argument: str) -> Tensor:
    if isinstance(source, Tensor):
        return source
    array = source if isinstance(source, np.ndarray) else _load(str(source))
    if array.ndim == 0:
        raise DataError(f"Arrays {argument}: a single number, not rows")
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise DataError(f"Arrays {argument}: values of type {array.dtype}; torch has none such") from error


def _load(text: str) -> np.ndarray[Any, Any]:
    """Return the array of `file.npy`, `file.npz` or `file.npz:name`. Pickled objects are refused."""
    file, _, name = text.rpartition(":") if ".npz:" in text else (text, "", "")
    path = project_path(file)
    where = shown_path(path)
    if not path.is_file():
        raise DataError(f"{where}: no such file")
    try:
        check_unpacked(path)
        loaded = np.load(path, mmap_mode="c" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if not name and len(loaded.files) == 1:
                name = loaded.files[0]
            if name not in loaded.files:
                known = ", ".join(loaded.files)
                raise DataError(f"{where}: no array {name!r}; name one as {file}:NAME, of {known}")
            return np.asarray(loaded[name])
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged files
        raise DataError(f"{where}: cannot be read as a NumPy file: {error}") from error
