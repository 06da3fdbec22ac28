"""What a model says about each row, in the user's own terms: class names, and targets in their own units."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from src.data.part import Part
from src.utils.errors import DataError

CLASSIFYING = (nn.CrossEntropyLoss, nn.NLLLoss)


def write_predictions(path: Path, part: Part, outputs: Iterable[Any], criterion: Any) -> int:
    """Write one CSV row per row of `part` and return their number.

    Columns: `row` (the row's number in its dataset, or what the dataset's `row_id` says), then for a classifier
    `prediction` (the class's name where the dataset has `class_names`) and `probability`, else `prediction`, or
    `prediction_0`, ... for several, undone by the dataset's `decode` where it has one.

    Args:
        path: Is replaced if it exists.
        outputs: Of the model, batch by batch in the order of the rows; tensors [N], [N, 1] or [N, C].
        criterion: The loss tells whether outputs are class scores.

    Raises:
        DataError: Outputs are not such tensors.
    """
    dataset: Any = part.dataset
    num_rows = 0
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            for batch in outputs:
                columns = prediction_columns(batch, dataset, isinstance(criterion, CLASSIFYING))
                count = len(next(iter(columns.values())))
                rows = _row_ids(part, num_rows, count)
                pd.DataFrame({"row": rows, **columns}).to_csv(file, index=False, header=num_rows == 0)
                num_rows += count
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return num_rows


def prediction_columns(outputs: Any, dataset: Any, is_classifier: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Return named columns, each [N], for a batch of outputs."""
    if isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2):
        found = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(f"predictions: outputs must be a tensor [N] or [N, C], found {found}; override Task.predict")
    if is_classifier and outputs.dim() == 2:
        probabilities, classes = torch.softmax(outputs.float(), 1).cpu().max(1)  # device sync
        names = getattr(dataset, "class_names", None)
        labels = np.asarray(names, dtype=object)[classes.numpy()] if names is not None else classes.numpy()
        return {"prediction": labels, "probability": probabilities.numpy()}
    values = dataset.decode(outputs.float().cpu()) if hasattr(dataset, "decode") else outputs.float().cpu()
    array = np.asarray(values).reshape(len(outputs), -1)
    names = ["prediction"] if array.shape[1] == 1 else [f"prediction_{i}" for i in range(array.shape[1])]
    return {name: array[:, i] for i, name in enumerate(names)}


def _row_ids(part: Part, start: int, count: int) -> list[Any]:
    if part.is_iterable:
        return list(range(start, start + count))
    rows = part.row_ids()[start : start + count].tolist()
    row_id = getattr(part.dataset, "row_id", None)
    return [row_id(row) for row in rows] if row_id else rows
