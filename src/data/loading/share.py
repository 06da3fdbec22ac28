"""The share of one of several processes that train together: its rows of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One share of `count` equal ones. Together the shares hold every row of a batch once, in its order."""

    index: int = 0
    count: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether there is but one share."""
        return self.count == 1

    def bounds(self, num_rows: int) -> tuple[int, int]:
        """Return where this share of so many rows begins and ends; the first shares may have one row more."""
        size, rest = divmod(num_rows, self.count)
        first = self.index * size + min(self.index, rest)
        return first, first + size + (self.index < rest)


WHOLE = Share()


@dataclass(frozen=True)
class SharedBatch:
    """A share of a batch. Where there are fewer rows than shares, some get the first row, only to keep pace."""

    batch: Any
    num_own: int
    """Rows of this share; 0 when the row in `batch` belongs to another."""
    num_rows: int
    """Rows of all shares together."""


def shared_rows(batches: Iterator[Tensor], share: Share, seen: int) -> Iterator[tuple[Tensor, int, int]]:
    """Yield of each batch the rows to read here, how many of them are this share's own, and how many there are in all.

    Args:
        batches: Rows of all shares.
        share: Which are read here; the first row, which is another's, where there are none.
        seen: Rows of the first batch to leave out.
    """
    for whole in batches:
        rows, seen = whole[seen:], 0
        first, end = share.bounds(len(rows))
        yield rows[first:end] if end > first else rows[:1], end - first, len(rows)
