"""What rows are known by: hashes of their inputs, to split by, and to find the same row in two parts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from src.data.divide import hash_code
from src.data.part import Part
from src.utils.errors import CheckpointError, DataError
from src.utils.seed import forked_rng

log = logging.getLogger(__name__)

CHUNK_ROWS = 4096
AT_START, AT_CHECK = 1 << 26, 1 << 30
"""Bytes of inputs that are looked at to find overlaps, of each part: when a run starts, and when it is only checked."""
MAX_ROWS_AT_START = 100_000


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
    with forked_rng(0):
        hashes = [
            hash_code(content) for chunk in torch.split(rows, CHUNK_ROWS) for content in _contents(dataset, chunk)
        ]
    return np.array(hashes, dtype=np.int64)


def _contents(dataset: Any, rows: Tensor) -> Iterator[bytes]:
    """Yield the inputs of each row as bytes."""
    if not is_fast(dataset):
        for row in rows.tolist():
            yield b"".join(_bytes(_inputs(dataset[row]), dataset))
        return
    if hasattr(dataset, "content"):
        batch = dataset.content(rows)
    elif type(dataset) is TensorDataset:
        batch = dataset.tensors[0].index_select(0, rows)
    else:
        batch = _inputs(dataset.read_batch(rows))
    leaves = [_rows_of(leaf) for leaf in _leaves(batch)]
    for position in range(len(rows)):
        yield b"".join(piece for leaf in leaves for piece in _bytes(leaf[position], dataset))


def _inputs(sample: Any) -> Any:
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, tuple):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch


def _rows_of(leaf: Any) -> Any:
    return np.ascontiguousarray(leaf.detach().cpu().numpy()) if isinstance(leaf, Tensor) else leaf


def _bytes(value: Any, dataset: Any) -> Iterator[bytes]:
    """Yield what a value is made of; equal values give equal bytes."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        yield value.tobytes()
    elif isinstance(value, (str, int, float, bool, np.generic, type(None))):
        yield f"{value!s}\0".encode()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _bytes(value[key], dataset)
    elif isinstance(value, (tuple, list, np.ndarray)):
        for item in value:
            yield from _bytes(item, dataset)
    elif callable(to_bytes := getattr(value, "tobytes", None)):  # an image of Pillow
        yield to_bytes()
    else:
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
    found = []
    try:
        seen = _hashes(train, max_bytes, fast_only)
        of_parts = [(part, _hashes(part, max_bytes, fast_only)) for part in others]
    except Exception as error:  # what cannot be read is told when it is its turn, with its row
        log.debug("rows are not compared: %s", error)
        return []
    for part, own in of_parts:
        shared = [content for content in own if content in seen]
        if shared:
            count = sum(len(own[content]) for content in shared)
            example = _named(part, own[shared[0]][0]), _named(train, seen[shared[0]][0])
            found.append(Overlap(part.name, count, sum(map(len, own.values())), example))
    return found


def _hashes(part: Part, max_bytes: int, at_start: bool) -> dict[int, list[int]]:
    """Return the row numbers that have each content."""
    rows = part.row_ids()
    row_bytes = max(1, sum(map(len, _contents(part.dataset, rows[:1]))))
    limit = max_bytes // row_bytes
    if at_start:
        limit = min(limit, MAX_ROWS_AT_START)
    if len(rows) > limit:
        rows = rows[torch.linspace(0, len(rows) - 1, max(1, limit)).long()]
    by_content: dict[int, list[int]] = {}
    for row, content in zip(rows.tolist(), row_hashes(part.dataset, rows).tolist(), strict=True):
        by_content.setdefault(content, []).append(row)
    return by_content


def _named(part: Part, row: int) -> Any:
    row_id = getattr(part.dataset, "row_id", None)
    return row_id(row) if row_id else row


def fingerprint(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return what tells later whether these are still the same rows: plain data, for a checkpoint.

    Per part: its number of rows, their numbers in the dataset (as a hash), and the content of some of them.
    """
    return {name: _fingerprint(part) for name, part in parts.items() if not part.is_iterable}


def _fingerprint(part: Part) -> dict[str, Any]:
    rows = part.row_ids()
    some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 64 if is_fast(part.dataset) else 8)).long()]
    try:
        content = hash_code(row_hashes(part.dataset, some).tobytes())
        if content != hash_code(row_hashes(part.dataset, some).tobytes()):
            content = 0  # never twice the same
    except Exception:  # see find_overlaps
        content = 0
    return {"rows": len(rows), "numbers": hash_code(rows.numpy().tobytes()), "content": content}


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
