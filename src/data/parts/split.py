"""One dataset or several become named parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from src.data.parts.content import row_keys
from src.data.parts.divide import split_rows
from src.data.parts.part import Part
from src.data.settings import SplitSettings
from src.utils.errors import CheckpointError, ConfigError, DataError

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
    if name != "train" or split is None or not split.part_names:
        return {name: None}
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ConfigError(f"data.split: dataset {type(dataset).__name__} has no length; give val and test of their own")
    return dict(split_rows(len(dataset), split, _values(dataset, split)))


def _values(dataset: Any, split: SplitSettings) -> Any:
    """Return what the split goes by, one value for each row; None if it goes by nothing."""
    if split.stratify:
        targets = getattr(dataset, "targets", None)
        if targets is None:
            raise DataError(
                f"data.split.stratify: dataset {type(dataset).__name__} offers no `targets`; give it that attribute, "
                "the class of each row, or leave `stratify` out"
            )
        return targets
    if split.groups or split.time:
        return column_of(dataset, split.source, f"data.split.{split.method}")
    return row_keys(dataset) if split.stable else None


def column_of(dataset: Any, name: str, where: str) -> Any:
    """Return a column of a table, or an attribute of any other dataset: one value for each row.

    Raises:
        DataError: There is none of this name.
    """
    if callable(column := getattr(dataset, "column", None)):
        try:
            return column(name)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    values = getattr(dataset, name, None)
    if values is None or callable(values):
        raise DataError(f"{where}: dataset {type(dataset).__name__} has no column and no attribute {name!r}")
    return values


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
            try:
                part.dataset.load_state_dict(state)
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:
                raise CheckpointError(
                    f"{part.name}: what training learned of the data is damaged in the checkpoint: "
                    f"{type(error).__name__}: {error}"
                ) from error
            seen.add(id(part.dataset))


def parts_state(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return what the datasets learned from the training rows: tensors and plain data, fit for a checkpoint."""
    for part in parts.values():
        if hasattr(part.dataset, "state_dict"):
            return dict(part.dataset.state_dict())
    return {}


class DataMemory:
    """What the data learned from the training rows (the fitted preprocessing), as part of a checkpoint."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = parts

    def state_dict(self) -> dict[str, Any]:
        return parts_state(self.parts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        fit_parts(self.parts, state)
