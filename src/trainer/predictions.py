"""What a model says about each row, in the user's own terms: class names, and targets in their own units."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch
from torch import Tensor

from src.data.part import Part
from src.trainer.criterion import Kind, terms_of
from src.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

Decode = Callable[[Tensor], Any]


def output_kind(criterion: Any) -> Kind:
    """Return what outputs mean, which the loss tells.

    Returns:
        `classes`: scores [N, C], one per class. `binary`: one logit for the second of two classes. `values`: numbers.
    """
    kinds = {term.kind for term in terms_of(criterion)}  # of several terms the one that says most
    return "classes" if "classes" in kinds else "binary" if "binary" in kinds else "values"


def own_units(dataset: Any, kind: Kind) -> Decode | None:
    """Return what puts scaled values into the target's own units; None where they are in them already."""
    scales = kind == "values" and getattr(dataset, "scales_target", True)
    return getattr(dataset, "decode", None) if scales else None


def class_probabilities(outputs: Tensor, kind: Kind) -> Tensor | None:
    """Return probabilities [N, C] on the CPU, or None where outputs [N, C] or [N] are no class scores."""
    outputs = outputs.detach().float().cpu()  # device sync
    if kind == "classes" and outputs.dim() == 2:
        return torch.softmax(outputs, 1)
    if kind == "binary" and outputs.numel() == len(outputs):
        positive = torch.sigmoid(outputs.reshape(-1))
        return torch.stack([1 - positive, positive], 1)
    return None


def prediction_columns(
    outputs: Any, kind: Kind, class_names: Sequence[str] | None = None, decode: Decode | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Return named columns, each [N], for a batch of outputs [N], [N, 1] or [N, C].

    For a classifier `prediction` (the class's name, if it has one) and `probability`, else `prediction`, or
    `prediction_0`, ... for several, in the target's own units if `decode` says how.

    Raises:
        DataError: Outputs are not such tensors.
    """
    if isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2):
        found = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(f"predictions: outputs must be a tensor [N] or [N, C], found {found}; override Task.predict")
    probabilities = class_probabilities(outputs, kind)
    if probabilities is not None:
        highest, classes = probabilities.max(1)
        labels = classes.numpy()
        if class_names is not None and len(class_names) == probabilities.shape[1]:
            labels = np.asarray(class_names, dtype=object)[labels]
        return {"prediction": labels, "probability": highest.numpy()}
    values = outputs.float().cpu()
    array = np.asarray(decode(values) if decode else values).reshape(len(outputs), -1)
    names = ["prediction"] if array.shape[1] == 1 else [f"prediction_{i}" for i in range(array.shape[1])]
    return {name: array[:, i] for i, name in enumerate(names)}


def prediction_tables(
    part: Part,
    outputs: Iterable[Any],
    kind: Kind,
    class_names: Sequence[str] | None = None,
    decode: Decode | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield a table for each batch of outputs, in the order of the rows of `part`.

    Its first column is `row`: the row's number in its dataset, or what the dataset's `row_id` says.
    """
    import pandas as pd  # slow to import, and training does without

    decode = decode or getattr(part.dataset, "decode", None)
    num_rows = 0
    for batch in outputs:
        columns = prediction_columns(batch, kind, class_names, decode)
        count = len(next(iter(columns.values())))
        yield pd.DataFrame({"row": row_names(part, num_rows, count), **columns})
        num_rows += count


def row_names(part: Part, start: int, count: int) -> list[Any]:
    """Return what a user calls `count` rows of a part from position `start` on."""
    if part.is_iterable:
        return list(range(start, start + count))
    rows = part.row_ids()[start : start + count].tolist()
    row_id = getattr(part.dataset, "row_id", None)
    return [row_id(row) for row in rows] if row_id else rows


def check_format(path: Path) -> None:
    """Refuse a file that predictions are not written as.

    Raises:
        ConfigError: The path ends in neither `.csv` nor `.jsonl`, or its folder is not there.
    """
    if str(path) == "-":
        return
    if path.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{path}: predictions are written as .csv or .jsonl; name such a file, or - for the screen")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")


def write_tables(path: Path, tables: Iterable[pd.DataFrame]) -> int:
    """Write tables one below the other and return the number of rows. The file is there whole or not at all.

    Args:
        path: Ends in `.csv`, or `.jsonl` for one JSON object a line; `-` is standard output, as CSV.
        tables: All with the same columns; one is in memory at a time.

    Raises:
        ConfigError: The path ends otherwise.
    """
    check_format(path)
    num_rows = 0
    with _whole_file(path) as file:
        for table in tables:
            if path.suffix == ".jsonl":
                text = table.to_json(orient="records", lines=True, force_ascii=False, double_precision=15)
                file.write(text.rstrip("\n") + "\n")
            else:
                table.to_csv(file, index=False, header=num_rows == 0, lineterminator="\n")
            num_rows += len(table)
    return num_rows


@contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    if str(path) == "-":
        yield sys.stdout
        return
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
