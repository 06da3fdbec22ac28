"""Handwritten digits that come with scikit-learn: 1797 grey images of 8 x 8."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """1797 handwritten digits.

    A sample is `(image, target)`: float32 [1, 8, 8] in 0..1, and int64 [] in 0..9.
    Source: https://archive.ics.uci.edu/dataset/80
    """

    class_names = [str(digit) for digit in range(10)]
    num_classes = 10
    is_image = True

    def __init__(self) -> None:
        table = _read_table()
        self.images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8).astype(np.float32) / 16)
        self.targets = torch.from_numpy(table[:, -1].astype(np.int64))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row], self.targets[row]

    def read_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, 8, 8] and targets [N]."""
        return self.images.index_select(0, rows), self.targets.index_select(0, rows)


def _read_table() -> np.ndarray:
    """Return 64 pixels of 0..16 and the digit, [1797, 65]: from the file, as importing scikit-learn takes 2 s."""
    spec = find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
