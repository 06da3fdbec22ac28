"""The base of their data loaders: a DataLoader that can hold some of its rows out for validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, default_collate

from src.utils.errors import ConfigError


class BaseDataLoader(DataLoader[Any]):
    """Batches of the rows that train; `split_validation` gives those that were held out.

    Args:
        dataset: With a length.
        batch_size: Rows in a batch.
        shuffle: Draw a new order each epoch. With a split, both parts are drawn in a new order each epoch.
        validation_split: A share below 1 or a whole number of rows; 0 holds out none. Which rows is the same always.
        num_workers: Processes that read ahead.
        collate_fn: Makes a batch of samples.

    Raises:
        ConfigError: Nothing would be left to train on, or to validate with.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        shuffle: bool,
        validation_split: float,
        num_workers: int,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self.validation_split = validation_split
        self.n_samples = len(dataset)  # type: ignore[arg-type]
        train, self.valid_sampler = self._split_sampler(validation_split)
        self.shuffle = shuffle and train is None
        self.init_kwargs: dict[str, Any] = {
            "dataset": dataset,
            "batch_size": batch_size,
            "shuffle": self.shuffle,
            "collate_fn": collate_fn,
            "num_workers": num_workers,
        }
        super().__init__(sampler=train, **self.init_kwargs)

    def _split_sampler(self, split: float) -> tuple[SubsetRandomSampler | None, SubsetRandomSampler | None]:
        if split == 0:
            return None, None
        rows = np.arange(self.n_samples)
        np.random.seed(0)  # theirs too: the held-out rows are those that the checkpoints of the project know
        np.random.shuffle(rows)
        num_valid = split if isinstance(split, int) else int(self.n_samples * split)
        if not 0 < num_valid < self.n_samples:
            raise ConfigError(
                f"data_loader.args.validation_split: {split} of {self.n_samples} rows; both parts need at least one "
                f"row: a share below 1, or a whole number from 1 to {self.n_samples - 1}"
            )
        self.n_samples -= num_valid
        return SubsetRandomSampler(rows[num_valid:].tolist()), SubsetRandomSampler(rows[:num_valid].tolist())

    def split_validation(self) -> DataLoader[Any] | None:
        """Return the loader of the rows held out, None when there are none."""
        return None if self.valid_sampler is None else DataLoader(sampler=self.valid_sampler, **self.init_kwargs)
