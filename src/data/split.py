"""One dataset or several become named parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.part import Part
from src.data.settings import SplitSettings
from src.utils.errors import ConfigError, DataError

Transforms = Sequence[Callable[[Any], Any]]


def make_parts(
    datasets: Mapping[str, Dataset[Any]],
    split: SplitSettings | None = None,
    transforms: Transforms = (),
    part_transforms: Mapping[str, Transforms] | None = None,
    seed: int = 0,
) -> dict[str, Part]:
    """Return the parts of a run, by name.

    Args:
        datasets: Dataset of each part, by the part's name. With `split`, the dataset called `train` is divided.
        split: How much of `train` becomes `val` and `test`.
        transforms: Transforms of every part without transforms of its own.
        part_transforms: Transforms of a part instead of the common ones.
        seed: The run's seed, from which random transforms draw.

    Raises:
        ConfigError: The split does not work with so many rows, or would replace a part that has its own dataset.
        DataError: A dataset has no rows, or offers no classes to stratify by.
    """
    parts = {}
    for name, dataset in datasets.items():
        for part_name, indices in _divide(name, dataset, split).items():
            if part_name != name and part_name in datasets:
                raise ConfigError(f"data.split.{part_name}: part {part_name} has its own dataset; use one of the two")
            chosen = (part_transforms or {}).get(part_name, transforms)
            parts[part_name] = Part(part_name, dataset, indices, chosen, seed)
            if not parts[part_name].is_iterable and len(parts[part_name]) == 0:
                raise DataError(f"{part_name}: dataset {type(dataset).__name__} has 0 rows")
    return parts


def _divide(name: str, dataset: Dataset[Any], split: SplitSettings | None) -> dict[str, Tensor | None]:
    if name != "train" or split is None or not (split.val or split.test):
        return {name: None}
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ConfigError(f"data.split: dataset {type(dataset).__name__} has no length; give val and test of their own")
    targets = None
    if split.stratify:
        targets = getattr(dataset, "targets", None)
        if targets is None:
            raise DataError(f"data.split.stratify: dataset {type(dataset).__name__} offers no `targets`")
    return dict(split_rows(len(dataset), split, targets))


def split_rows(num_rows: int, split: SplitSettings, targets: Any = None) -> dict[str, Tensor]:
    """Return the row numbers of each part, int64 and ascending; together they are 0 to num_rows - 1, each once.

    Args:
        num_rows: Rows to divide.
        split: Shares or numbers of rows for `val` and `test`; `train` gets what is left.
        targets: Class of each row, [num_rows], to be spread evenly: every part gets each class in proportion,
            to within one row. None splits without regard to classes.
    """
    counts = _counts(num_rows, split)
    generator = torch.Generator().manual_seed(split.seed)
    rows = torch.randperm(num_rows, generator=generator)
    if targets is not None:
        classes = _classes(targets, num_rows)
        rows = rows[torch.argsort(classes[rows], stable=True)]
    chosen = {}
    for name, count in counts.items():
        if targets is None:
            taken = torch.arange(count)
        else:  # equally spaced in an order sorted by class: every class gives its share
            taken = torch.div((2 * torch.arange(count) + 1) * len(rows), 2 * count, rounding_mode="floor")
        is_taken = torch.zeros(len(rows), dtype=torch.bool)
        is_taken[taken] = True
        chosen[name] = rows[is_taken].sort().values
        rows = rows[~is_taken]
    if targets is not None:
        _check_classes_left(classes, rows)
    return {"train": rows.sort().values, **chosen}


def _counts(num_rows: int, split: SplitSettings) -> dict[str, int]:
    """Return how many rows each part but `train` gets."""
    wanted = {name: share for name, share in (("val", split.val), ("test", split.test)) if share}
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
    left = num_rows - sum(counts.values())
    if left <= 0:
        raise ConfigError(
            f"data.split ({shown}): takes {sum(counts.values())} of {num_rows} rows; train would have 0 rows"
        )
    return counts


def _classes(targets: Any, num_rows: int) -> Tensor:
    values = targets.numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if values.shape != (num_rows,):
        raise DataError(f"data.split.stratify: targets are {list(values.shape)}, not one class per row [{num_rows}]")
    names, classes = np.unique(values, return_inverse=True)
    if values.dtype.kind == "f" and not np.array_equal(names, np.round(names)):
        raise DataError(f"data.split.stratify: targets are numbers such as {values[0]}, not classes; leave it out")
    return torch.from_numpy(classes)


def _check_classes_left(classes: Tensor, train_rows: Tensor) -> None:
    missing = set(classes.tolist()) - set(classes[train_rows].tolist())
    if missing:
        row = int((classes == min(missing)).nonzero()[0])
        raise DataError(f"data.split.stratify: no row of the class of row {row} is left for train; it has too few rows")


def fit_parts(parts: Mapping[str, Part], state: Mapping[str, Any] | None = None) -> None:
    """Let the datasets learn their preprocessing from the rows of `train`, and hand it to those of the other parts.

    Args:
        parts: What `make_parts` returned.
        state: What `parts_state` returned in an earlier run, taken instead of learning anew.

    Raises:
        DataError: A part's dataset needs preprocessing that `train` does not offer.
    """
    train = parts.get("train")
    if state is None and train is not None and hasattr(train.dataset, "fit"):
        train.dataset.fit(train.row_ids())
        state = train.dataset.state_dict()  # type: ignore[attr-defined]
    if not state:
        return
    seen = set() if train is None or hasattr(train.dataset, "load_state_dict") else {id(train.dataset)}
    for part in parts.values():
        if id(part.dataset) not in seen and hasattr(part.dataset, "load_state_dict"):
            part.dataset.load_state_dict(state)
            seen.add(id(part.dataset))


def parts_state(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return what the datasets learned from the training rows: tensors and plain data, fit for a checkpoint."""
    for part in parts.values():
        if hasattr(part.dataset, "state_dict"):
            return dict(part.dataset.state_dict())
    return {}
