"""What a model says about each row, in the user's own terms: class names, and targets in their own units."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.data.parts.facts import count_classes
from src.data.parts.part import Part
from src.trainer.criterion import Kind, terms_of
from src.utils.errors import ConfigError, DataError
from src.utils.whole_file import whole_file

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]
Decode = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Meaning:
    """What the outputs of a model mean: scores of classes, or numbers.

    Most losses of torch tell. Of any other, and of several, the data do: outputs are scores where each row has as many
    of them as the targets have classes, or one where there are two.
    """

    told: Kind | None
    """By the loss. `classes`: scores [N, C]. `binary`: a logit for each of several labels, or for the second of two
    classes. `values`: numbers."""
    num_classes: int | None = None
    """Of the targets, if they are classes, one for each row."""
    class_names: Sequence[str] | None = None
    decode: Decode | None = None
    """Puts numbers into the target's own units."""

    @classmethod
    def of(cls, criterion: Any, dataset: Any) -> Meaning:
        """Return what a loss and the data that it is of tell together."""
        told = told_by(criterion)
        names = getattr(dataset, "class_names", None)
        columns = getattr(dataset, "target_names", None) or ()
        if names is None and told == "binary" and len(columns) > 1:
            names = columns  # a label each
        return cls(told, None if told else count_classes(dataset), names)

    @property
    def is_of_classes(self) -> bool:
        """Whether the targets are classes."""
        return self.told in ("classes", "binary") or (self.told is None and self.num_classes is not None)

    def kind(self, outputs: Tensor) -> Kind:
        """Return what outputs [N], [N, 1] or [N, C] are."""
        if self.told is not None:
            return self.told
        width = outputs[0].numel() if len(outputs) else 0
        if self.num_classes == 2 and width == 1:
            return "binary"
        return "classes" if width > 1 and width == self.num_classes else "values"

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Return probabilities of classes [N, C] on the CPU, or None where outputs [N, C] or [N] are no class scores.

        Scores that are probabilities already stay as they are.
        """
        kind, scores = self.kind(outputs), outputs.detach().float().cpu()  # device sync
        if kind == "classes" and scores.dim() == 2:
            rounding = len(scores[0]) * torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0
            sums_to_one = torch.allclose(scores.sum(1), torch.ones(len(scores)), atol=max(1e-4, rounding))
            is_done = sums_to_one and bool((scores >= 0).all())
            return scores if is_done else torch.softmax(scores, 1)
        if kind == "binary" and scores.numel() == len(scores):
            positive = torch.sigmoid(scores.reshape(-1))
            return torch.stack([1 - positive, positive], 1)
        return None

    def columns(self, outputs: Any) -> dict[str, Array]:
        """Return named columns, each [N], for a batch of outputs [N], [N, 1] or [N, C].

        Of a classifier `prediction` (the class's name, if it has one) and `probability`; of several labels
        `probability_` and the label's name for each; else `numbers`.

        Raises:
            DataError: Outputs are not such tensors.
        """
        if isinstance(outputs, (tuple, list)) and outputs:
            outputs = outputs[0]
        if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2):
            found = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise DataError(
                f"predictions: outputs must be a tensor [N] or [N, C], found {found}; override Task.predict"
            )
        probabilities = self.probabilities(outputs)
        if probabilities is not None:
            highest, classes = probabilities.max(1)
            return {"prediction": self.labels(classes, probabilities.shape[1]), "probability": highest.numpy()}
        if self.told == "binary":
            each = torch.sigmoid(outputs.float()).cpu().numpy()  # device sync
            return {f"probability_{name}": each[:, k] for k, name in enumerate(named(self.class_names, each.shape[1]))}
        return self.numbers(outputs)

    def labels(self, classes: Tensor, num_classes: int) -> Array:
        """Return the names of class ids [N], or the ids where there are no names."""
        ids: Array = classes.numpy()
        has_names = self.class_names is not None and len(self.class_names) == num_classes
        return np.asarray(self.class_names, dtype=object)[ids] if has_names else ids

    def numbers(self, values: Tensor) -> dict[str, Array]:
        """Return the column `prediction`, or `prediction_0`, ... of several, in the target's own units."""
        values = values.float().cpu()  # device sync
        array = np.asarray(self.decode(values) if self.decode else values).reshape(len(values), -1)
        names = ["prediction"] if array.shape[1] == 1 else [f"prediction_{i}" for i in range(array.shape[1])]
        return {name: array[:, i] for i, name in enumerate(names)}


def told_by(criterion: Any) -> Kind | None:
    """Return what a loss says of outputs, of several terms the one that says most; None where the data must tell."""
    kinds = [term.kind for term in terms_of(criterion)] or [None]
    return next((kind for kind in ("classes", "binary", None) if kind in kinds), "values")


def named(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return what so many classes are called: as the data say, else by their numbers."""
    names = list(class_names or [])
    return [str(name) for name in names] if len(names) == num_classes else [str(k) for k in range(num_classes)]


def own_units(dataset: Any, meaning: Meaning) -> Decode | None:
    """Return what puts scaled values into the target's own units; None where they are in them already."""
    scales = not meaning.is_of_classes and getattr(dataset, "scales_target", True)
    return getattr(dataset, "decode", None) if scales else None


def prediction_tables(part: Part, outputs: Iterable[Any], meaning: Meaning) -> Iterator[pd.DataFrame]:
    """Yield a table for each batch of outputs, in the order of the rows of `part`.

    Its first column is `row`: the row's number in its dataset, or what the dataset's `row_id` says.
    """
    import pandas as pd  # slow to import, and training does without

    meaning = replace(meaning, decode=meaning.decode or getattr(part.dataset, "decode", None))
    num_rows = 0
    for batch in outputs:
        columns = meaning.columns(batch)
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
    target: AbstractContextManager[IO[Any]] = nullcontext(sys.stdout) if str(path) == "-" else whole_file(path)
    with target as file:
        for table in tables:
            if path.suffix == ".jsonl":
                text = table.to_json(orient="records", lines=True, force_ascii=False, double_precision=15)
                file.write(text.rstrip("\n") + "\n")
            else:
                table.to_csv(file, index=False, header=num_rows == 0, lineterminator="\n")
            num_rows += len(table)
    return num_rows
