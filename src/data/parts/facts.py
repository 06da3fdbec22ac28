"""What references such as `${data.num_classes}` find about the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from src.data.parts.part import Part
from src.utils.errors import DataError


class TrainingData:
    """The attributes of the training dataset, and what follows from the rows that are trained on.

    An attribute of the dataset of the same name goes before what is worked out here.

    Args:
        part: The part `train`.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self.__wrapped__ = part.dataset  # whose name and attributes messages show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part.dataset, name)

    @property
    def class_counts(self) -> Tensor:
        """Training rows of each class, int64 [K].

        Raises:
            DataError: The targets are not one class per row.
        """
        if (own := getattr(self._part.dataset, "class_counts", None)) is not None:
            return torch.as_tensor(own)
        targets = self._part.targets()
        if (
            targets.dim() != 1
            or targets.is_floating_point()
            or targets.dtype == torch.bool
            or bool((targets < 0).any())
        ):
            kind = f"{list(targets.shape)} of {str(targets.dtype).removeprefix('torch.')}"
            raise DataError(f"${{data.class_counts}}: targets are {kind}, not one class 0, 1, ... per row")
        return targets.bincount(minlength=getattr(self._part.dataset, "num_classes", None) or 0)

    @property
    def class_weights(self) -> Tensor:
        """Weights with which every class counts alike over the training rows, float32 [K], 1 on average over rows.

        Raises:
            DataError: A class has no row in `train`.
        """
        if (own := getattr(self._part.dataset, "class_weights", None)) is not None:
            return torch.as_tensor(own)
        counts = self.class_counts
        if not bool((counts > 0).all()):
            missing = int((counts == 0).nonzero()[0])
            raise DataError(f"${{data.class_weights}}: class {missing} has no row in train; stratify the split")
        return (int(counts.sum()) / (len(counts) * counts)).float()


def count_classes(dataset: Any) -> int | None:
    """Return how many classes the targets of a dataset are of, one for each row; None where they are no classes.

    The dataset says so by `num_classes` or `class_names`; if it does not, whole numbers from 0 on are classes.
    """
    said = getattr(dataset, "num_classes", None) or len(getattr(dataset, "class_names", None) or ())
    targets = getattr(dataset, "targets", None)
    if targets is None:
        return said or None
    try:
        targets = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None  # boxes, texts
    if not targets.dim() or not len(targets) or targets.numel() != len(targets):
        return None  # several labels for each row, or several numbers
    if said:
        return said if bool((targets == targets.long()).all()) else None
    is_whole = not (targets.is_floating_point() or targets.dtype == torch.bool) and int(targets.min()) >= 0
    return int(targets.max()) + 1 if is_whole else None
