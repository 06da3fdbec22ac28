"""What rows are known by: hashes of their inputs, to split by, and to find the same row in two parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from src.data.parts.divide import hash_code
from src.data.parts.part import Part
from src.utils.errors import CheckpointError, DataError
from src.utils.seed import forked_rng

log = logging.getLogger(__name__)

CHUNK_ROWS, CHUNK_BYTES = 4096, 1 << 24
"""What is read at once at most."""
AT_START, AT_CHECK = 1 << 26, 1 << 30
"""Bytes of inputs that are looked at to find overlaps, of each part: when a run starts, and when it is only checked."""
MAX_ROWS_AT_START = 50_000


def row_keys(dataset: Any) -> Any:
    """Return what each row is known by when rows are added: what `dataset.row_keys()` says, else its content.

    Raises:
        DataError: The content is nothing that can be hashed.
    """
    if callable(keys := getattr(dataset, "row_keys", None)):
        return keys()
    return row_hashes(dataset, torch.arange(len(dataset)))


def is_fast(dataset: Any) -> bool:
    """Return whether many rows of a dataset are read at once."""
    return hasattr(dataset, "content") or hasattr(dataset, "read_batch") or type(dataset) is TensorDataset


def row_hashes(dataset: Any, rows: Tensor) -> np.ndarray[Any, Any]:
    """Return a hash of the inputs of each of `rows`, int64 [rows]; targets and transforms have no part in it.

    Raises:
        DataError: The inputs are nothing that can be hashed.
    """
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    size = max(1, min(CHUNK_ROWS, CHUNK_BYTES // _row_bytes(dataset, rows)))
    with forked_rng(0):
        chunks = (_contents(dataset, chunk) for chunk in torch.split(rows, size))
        return np.array([hash_code(content) for chunk in chunks for content in chunk], dtype=np.int64)


def _row_bytes(dataset: Any, rows: Tensor) -> int:
    """Return how large the inputs of the first of `rows` are: what bounds how many are read at once."""
    with forked_rng(0):
        return max(1, sum(getattr(column, "nbytes", 64) for column in _columns(dataset, rows[:1])))


def _contents(dataset: Any, rows: Tensor) -> Iterable[bytes]:
    """Return the inputs of each row as bytes: the same ones whether rows are read together or one by one."""
    if is_fast(dataset):
        return _joined(_columns(dataset, rows), dataset)
    return (content for row in torch.split(rows, 1) for content in _joined(_columns(dataset, row), dataset))


def _columns(dataset: Any, rows: Tensor) -> list[Any]:
    """Return the inputs of these rows, of one row if they are not read together, as columns of one value per row."""
    if not is_fast(dataset):
        return [_row(leaf) for leaf in _leaves((_inputs(dataset[int(rows)]),))]
    if hasattr(dataset, "content"):
        return list(_leaves(dataset.content(rows)))
    if type(dataset) is TensorDataset:
        return [dataset.tensors[0].index_select(0, rows)]
    return list(_leaves(_inputs(dataset.read_batch(rows))))


def _inputs(sample: Any) -> Any:
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def _leaves(batch: Any) -> Iterator[Any]:
    """Yield the columns of a batch, each of one value per row."""
    if isinstance(batch, Mapping):
        for key in sorted(batch):
            yield from _leaves(batch[key])
    elif isinstance(batch, tuple):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch


def _row(value: Any) -> Any:
    """Return one value as a column of one row."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value[None]
    return [value]


def _joined(leaves: list[Any], dataset: Any) -> Iterable[bytes]:
    columns = [_column_bytes(leaf, dataset) for leaf in leaves]
    if len(columns) == 1:
        return columns[0]
    return (b"".join(len(cell).to_bytes(8, "little") + cell for cell in row) for row in zip(*columns, strict=True))


def _column_bytes(leaf: Any, dataset: Any) -> list[bytes]:
    """Return each row of a column as bytes, without the zeros at its end: how far a text is padded is no content."""
    array = leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf
    if isinstance(array, np.ndarray) and array.dtype.kind != "O":
        whole, size = np.ascontiguousarray(array).tobytes(), array.nbytes // max(1, len(array))
        return [whole[start : start + size].rstrip(b"\0") for start in range(0, len(whole), size or 1)]
    return [_bytes(value, dataset) for value in array]


def _bytes(value: Any, dataset: Any) -> bytes:
    """Return what a single value is made of."""
    if isinstance(value, (str, int, float, bool, np.generic, type(None))):
        return str(value).encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        return _column_bytes(value[None], dataset)[0]
    if isinstance(value, (tuple, list)):
        return b"\0".join(_bytes(item, dataset) for item in value)
    if callable(to_bytes := getattr(value, "tobytes", None)):  # an image of Pillow
        return bytes(to_bytes())
    raise DataError(
        f"dataset {type(dataset).__name__}: inputs of type {type(value).__name__} cannot be compared; "
        "give it a method row_keys() that returns what each row is known by"
    )


@dataclass(frozen=True)
class Overlap:
    """Rows of a part that have the same inputs as rows of `train`."""

    part: str
    num_same: int
    num_looked_at: int
    example: tuple[Any, Any]
    """A row of the part and the row of `train` that is the same."""

    def __str__(self) -> str:
        row, train_row = self.example
        count = f"{self.num_same:,} of {self.num_looked_at:,} rows"
        return f"{self.part}: {count} have the same inputs as rows of train, such as row {row} as row {train_row}"


def find_overlaps(parts: Mapping[str, Part], max_bytes: int, fast_only: bool) -> list[Overlap]:
    """Return which parts hold rows of `train`.

    Args:
        parts: All parts of a run.
        max_bytes: Inputs to look at in each part; of larger ones rows at equal distances are looked at.
        fast_only: Pass over datasets that are read row by row.
    """
    train = parts.get("train")
    others = [part for part in parts.values() if part is not train and not part.is_iterable]
    if train is None or train.is_iterable or not others:
        return []
    if fast_only and not all(is_fast(part.dataset) for part in (train, *others)):
        return []
    try:
        train_rows, seen = _hashed_rows(train, max_bytes, fast_only)
        of_parts = [(part, *_hashed_rows(part, max_bytes, fast_only)) for part in others]
    except Exception as error:  # what cannot be read is told when it is its turn, with its row
        log.debug("rows are not compared: %s", error)
        return []
    found = []
    for part, rows, own in of_parts:
        is_shared = np.isin(own, seen)
        if is_shared.any():
            first = int(is_shared.argmax())
            train_row = int(train_rows[int((seen == own[first]).argmax())])
            example = _named(part, int(rows[first])), _named(train, train_row)
            found.append(Overlap(part.name, int(is_shared.sum()), len(rows), example))
    return found


def _hashed_rows(part: Part, max_bytes: int, at_start: bool) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Return the numbers of the rows that are looked at, and their hashes."""
    rows = part.row_ids()
    limit = max_bytes // _row_bytes(part.dataset, rows)
    if at_start:
        limit = min(limit, MAX_ROWS_AT_START)
    if len(rows) > limit:
        rows = rows[torch.linspace(0, len(rows) - 1, max(1, limit)).long()]
    return rows, row_hashes(part.dataset, rows)


def _named(part: Part, row: int) -> Any:
    row_id = getattr(part.dataset, "row_id", None)
    return row_id(row) if row_id else row


def fingerprint(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return what tells later whether these are still the same rows: plain data, for a checkpoint.

    Per part: its number of rows, their numbers in the dataset (as a hash), the content of some of them, and of a split
    the rows themselves, a bit for each row of the dataset.
    """
    return {name: _fingerprint(part) for name, part in parts.items() if not part.is_iterable}


def _fingerprint(part: Part) -> dict[str, Any]:
    rows = part.row_ids()
    try:
        count = min(
            len(rows), 64 if is_fast(part.dataset) else 8, max(1, CHUNK_BYTES // _row_bytes(part.dataset, rows))
        )
        some = rows[torch.linspace(0, len(rows) - 1, count).long()]
        content = hash_code(row_hashes(part.dataset, some).tobytes())
        if content != hash_code(row_hashes(part.dataset, some).tobytes()):
            content = 0  # never twice the same
    except Exception:  # see find_overlaps
        content = 0
    found = {"rows": len(rows), "numbers": hash_code(rows.numpy().tobytes()), "content": content}
    if part.indices is None:
        return found
    is_in = torch.zeros(len(part.dataset), dtype=torch.bool)  # type: ignore[arg-type]
    is_in[rows] = True
    return {**found, "bits": torch.from_numpy(np.packbits(is_in.numpy())), "of": len(is_in)}


def keep_rows(before: Mapping[str, Any], parts: Mapping[str, Part]) -> int:
    """Give the parts of a split the rows that they had when `before` was taken, if the dataset has grown since.

    Returns:
        How many rows the dataset had then; 0 where nothing was done.
    """
    grown = [
        name
        for name, part in parts.items()
        if "bits" in before.get(name, ()) and part.indices is not None and len(part.dataset) > before[name]["of"]  # type: ignore[arg-type]
    ]
    for name in grown:
        bits = np.unpackbits(before[name]["bits"].numpy(), count=before[name]["of"])
        parts[name].indices = torch.from_numpy(np.flatnonzero(bits))
    return before[grown[0]]["of"] if grown else 0


def data_changes(before: Mapping[str, Any], parts: Mapping[str, Part]) -> list[str]:
    """Return how the parts differ from those that `before`, an earlier `fingerprint`, was taken of."""
    now = fingerprint(parts)
    changes = []
    for name in now.keys() & before.keys():
        old, new = before[name], now[name]
        if old["rows"] != new["rows"]:
            changes.append(f"{name} has {new['rows']:,} rows, had {old['rows']:,}")
        elif old["numbers"] != new["numbers"]:
            changes.append(f"{name} holds other rows of the dataset")
        elif old["content"] != new["content"] and old["content"] and new["content"]:
            changes.append(f"{name} has the same rows with another content")
    return sorted(changes)


def check_same_data(before: Mapping[str, Any] | None, parts: Mapping[str, Part], where: str) -> None:
    """Refuse to go on with other rows than the run began with; what is only tested may be another.

    Args:
        before: The `fingerprint` in the run's checkpoint; None if it has none.
        parts: Of the run that goes on.
        where: What messages call the run.

    Raises:
        CheckpointError: Training or validation rows are not those of the run.
    """
    trained = {name: part for name, part in parts.items() if not name.startswith("test")}
    if changes := data_changes(before or {}, trained):
        raise CheckpointError(
            f"{where}: the data have changed since it began: {'; '.join(changes)}\n"
            "To start a new run from its weights use trainer.init_from; to go on all the same, --allow-change data"
        )
