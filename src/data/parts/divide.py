"""Which rows go where: at random, by class, by group, by time, by hash; in shares or in folds."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.settings import SplitSettings
from src.utils.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]


def split_rows(num_rows: int, split: SplitSettings, values: Any = None) -> dict[str, Tensor]:
    """Return the row numbers of each part, int64 and ascending; together they are 0 to num_rows - 1, each once.

    Args:
        num_rows: Rows to divide.
        split: Shares or numbers of rows for `val` and `test`; `train` gets what is left. With `folds`, one fold takes
            the place of the share of `split.fold_part`.
        values: What the split goes by, one value per row: the class (`stratify`: every part gets each class in
            proportion, to within one row), the group, the time, or what a row is known by (`stable`). None if it goes
            by nothing.

    Raises:
        ConfigError: A part would have no rows.
        DataError: The values are not such.
    """
    codes = None if values is None else _codes(values, num_rows, split)
    rows = torch.arange(num_rows)
    parts: dict[str, Tensor] = {}
    shares = {name: share for name, share in (("val", split.val), ("test", split.test)) if share}
    if split.folds:
        shares.pop(split.fold_part, None)
        is_held = _folds(num_rows, split, codes) == split.fold - 1
        parts[split.fold_part], rows = rows[is_held], rows[~is_held]
    if split.stable:
        assert codes is not None
        parts |= _by_hash(rows, split, shares, codes)
    else:
        parts |= _by_count(rows, split, _counts(num_rows, len(rows), shares), codes)
    taken = torch.zeros(num_rows, dtype=torch.bool)
    for name, chosen in parts.items():
        taken[chosen] = True
        if not len(chosen):
            raise ConfigError(f"data.split: {name} would have 0 of {num_rows} rows; give it more")
    train = (~taken).nonzero().squeeze(1)
    if not len(train):
        raise ConfigError(f"data.split: takes {num_rows} of {num_rows} rows; train would have 0 rows")
    if split.stratify and codes is not None:
        _check_classes_left(codes, train)
    order = [name for name in ("val", "test") if name in parts]
    return {"train": train, **{name: parts[name] for name in order}}


def _by_count(rows: Tensor, split: SplitSettings, counts: dict[str, int], codes: Tensor | None) -> dict[str, Tensor]:
    """Return so many of `rows` for each part: picked from an order that the split gives them."""
    if split.time:
        assert codes is not None
        rows, counts = rows[torch.argsort(codes[rows], stable=True)], dict(reversed(counts.items()))
    else:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(split.seed))]
    if split.stratify and codes is not None:
        rows = rows[torch.argsort(codes[rows], stable=True)]
    chosen = {}
    for left, (name, count) in zip(range(len(counts), 0, -1), counts.items(), strict=True):
        is_taken = torch.zeros(len(rows), dtype=torch.bool)
        if split.time:  # the latest
            is_taken[len(rows) - count :] = True
        elif split.groups and codes is not None:
            is_taken = _whole_groups(codes[rows], count, left)
        elif split.stratify:  # equally spaced in an order sorted by class: every class gives its share
            is_taken[torch.div((2 * torch.arange(count) + 1) * len(rows), 2 * count, rounding_mode="floor")] = True
        else:
            is_taken[:count] = True
        chosen[name] = rows[is_taken].sort().values
        rows = rows[~is_taken]
    return chosen


def _whole_groups(codes: Tensor, count: int, left: int) -> Tensor:
    """Return which rows are taken, bool [rows]: groups in the order of `codes`, as long as that brings us nearer.

    Args:
        codes: Group of each row, in random order.
        count: Rows to take, about.
        left: Parts to come after this one, `train` included: each needs a group.
    """
    groups, first, sizes = np.unique(codes.numpy(), return_index=True, return_counts=True)
    if len(groups) <= left:
        raise ConfigError(f"data.split.groups: {len(groups)} groups left for {left + 1} parts; use fewer parts")
    order = np.argsort(first, kind="stable")
    taken: list[int] = []
    total = 0
    for position in order.tolist():
        size = int(sizes[position])
        if len(taken) < len(groups) - left and abs(total + size - count) < abs(total - count):
            taken.append(position)
            total += size
    return torch.isin(codes, torch.from_numpy(groups[taken or [int(sizes.argmin())]]))


def _folds(num_rows: int, split: SplitSettings, codes: Tensor | None) -> Tensor:
    """Return the fold of each row, 0 to folds - 1, int64 [num_rows]; their sizes differ by one row at most.

    By group they differ as the groups do: the largest group first, each into the fold that is smallest by then.
    """
    num_folds = split.folds
    if split.stable:
        assert codes is not None
        return (_unit_hashes(codes, split.seed) * num_folds).long()
    if num_folds > num_rows:
        raise ConfigError(f"data.split.folds: {num_folds} folds of {num_rows} rows; use fewer")
    rows = torch.randperm(num_rows, generator=torch.Generator().manual_seed(split.seed))
    if codes is None or split.stratify:
        if codes is not None:
            rows = rows[torch.argsort(codes[rows], stable=True)]
        folds = torch.empty(num_rows, dtype=torch.int64)
        folds[rows] = torch.arange(num_rows) % num_folds
        return folds
    groups, first, sizes = np.unique(codes[rows].numpy(), return_index=True, return_counts=True)
    if num_folds > len(groups):
        raise ConfigError(f"data.split.folds: {num_folds} folds of {len(groups)} groups; use fewer")
    fold_of, totals = np.zeros(len(groups), dtype=np.int64), [0] * num_folds
    for position in np.lexsort((first, -sizes)).tolist():
        smallest = min(range(num_folds), key=totals.__getitem__)
        fold_of[position] = smallest
        totals[smallest] += int(sizes[position])
    return torch.from_numpy(fold_of[np.searchsorted(groups, codes.numpy())])


def _by_hash(rows: Tensor, split: SplitSettings, shares: dict[str, float], codes: Tensor) -> dict[str, Tensor]:
    """Return the rows whose hash falls into each part's share of 0..1: a row's part depends on nothing but the row."""
    seed = split.seed + 1 if split.folds else split.seed  # else a fold would hold out a whole range
    hashes = _unit_hashes(codes[rows], seed)
    chosen, low = {}, 0.0
    for name, share in reversed(shares.items()):
        if share >= 1:
            raise ConfigError(f"data.split.{name}: {share:g} rows; with stable: true it is a share below 1")
        chosen[name] = rows[(hashes >= low) & (hashes < low + share)]
        low += share
    return chosen


def hash_code(content: bytes) -> int:
    """Return what `content` is known by: 63 bits that are the same on every machine."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1


def _unit_hashes(codes: Tensor, seed: int) -> Tensor:
    """Return a number in 0..1 for each code, float64; another seed gives unrelated ones."""
    salt = np.uint64(hash_code(str(seed).encode()))
    mixed = codes.numpy().astype(np.uint64) ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) / 2**53)


def _codes(values: Any, num_rows: int, split: SplitSettings) -> Tensor:
    """Return one whole number per row that stands for its class, group, time or identity."""
    array = values.numpy() if isinstance(values, Tensor) else np.asarray(values)
    where = f"data.split.{split.method}"
    what = "class" if split.stratify else "value"
    if array.shape != (num_rows,):
        raise DataError(f"{where}: {split.source} are {list(array.shape)}, not one {what} per row [{num_rows}]")
    if split.stratify:
        names, classes = np.unique(array, return_inverse=True)
        if array.dtype.kind == "f" and not np.array_equal(names, np.round(names)):
            raise DataError(f"{where}: {split.source} are numbers such as {array[0]}, not classes; leave it out")
        return torch.from_numpy(classes)
    _check_present(array, where, split.source)
    if split.time:
        return torch.from_numpy(np.unique(_moments(array, where, split.source), return_inverse=True)[1])
    if split.stable and not split.groups:
        return torch.from_numpy(array.astype(np.int64)) if array.dtype.kind in "iu" else _text_codes(array)
    return (
        _text_codes(array) if split.stable else torch.from_numpy(np.unique(array.astype(str), return_inverse=True)[1])
    )


def _text_codes(array: Array) -> Tensor:
    texts, inverse = np.unique(array.astype(str), return_inverse=True)
    codes = np.array([hash_code(text.encode()) for text in texts.tolist()], dtype=np.int64)
    return torch.from_numpy(codes[inverse])


def _check_present(array: Array, where: str, source: str) -> None:
    missing = array != array  # nan and NaT are not themselves
    if array.dtype.kind == "O":
        missing = missing | np.array([each is None for each in array])
    if np.any(missing):
        raise DataError(f"{where}: row {int(np.argmax(missing))} has no value in {source}")


def _moments(array: Array, where: str, source: str) -> Array:
    """Return times as they are if they are numbers, else dates as numbers."""
    if array.dtype.kind in "iufM":
        return array
    import pandas as pd

    moments = pd.to_datetime(pd.Series(array), errors="coerce", utc=True, format="mixed")
    if moments.isna().any():
        row = int(moments.isna().to_numpy().argmax())
        raise DataError(f"{where}: row {row}: {str(array[row])!r} in {source} is neither a number nor a date")
    return moments.to_numpy()


def _counts(num_rows: int, available: int, wanted: dict[str, float]) -> dict[str, int]:
    """Return how many rows each part but `train` gets, of `available` ones; shares are of `num_rows`."""
    shown = ", ".join(f"{name}: {share:g}" for name, share in wanted.items())
    counts = {}
    for name, share in wanted.items():
        if isinstance(share, float) and (share == 1 or (share > 1 and not share.is_integer())):
            raise ConfigError(f"data.split.{name}: {share}; use a share below 1 or a whole number of rows")
        counts[name] = round(share * num_rows) if share < 1 else int(share)
        if counts[name] == 0:
            raise ConfigError(f"data.split ({shown}): {name} would have 0 of {num_rows} rows; give it more")
    if all(share < 1 for share in wanted.values()) and sum(wanted.values()) > 1:
        raise ConfigError(f"data.split ({shown}): sums to {sum(wanted.values()):g}, more than 1; train gets the rest")
    if available - sum(counts.values()) <= 0:
        raise ConfigError(
            f"data.split ({shown}): takes {sum(counts.values())} of {available} rows; train would have 0 rows"
        )
    return counts


def _check_classes_left(classes: Tensor, train_rows: Tensor) -> None:
    missing = set(classes.tolist()) - set(classes[train_rows].tolist())
    if missing:
        row = int((classes == min(missing)).nonzero()[0])
        raise DataError(f"data.split.stratify: no row of the class of row {row} is left for train; it has too few rows")
