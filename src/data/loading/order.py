"""In which order rows are read: a function of (seed, epoch) that can start at any batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from src.data.loading.permutation import Permutation
from src.data.loading.share import Share, shared_rows
from src.data.parts.part import ORDER_STREAM, Part
from src.data.settings import LoaderSettings
from src.utils.errors import ConfigError, DataError
from src.utils.seed import counted_seed, forked_rng, rng_state, set_rng_state

MAX_DRAWN_ROWS = 1 << 22
"""Up to so many rows `torch.randperm` shuffles: 32 MiB, 0.1 s an epoch. Longer orders are computed batch by batch."""
ORDERS_AT_ONCE, ROWS_AT_ONCE = 64, 4096
"""Orders of few rows are drawn for so many epochs at once, or so many rows: one by itself, between a step and the next,
takes three times as long."""
MakeSampler = Callable[[Part, Generator], Iterable[Any]]
"""Makes the sampler of one epoch from the part and a generator seeded by (seed, epoch)."""


class RowOrder:
    """The batches of row numbers of each epoch.

    Args:
        part: Map-style part whose rows are ordered; row numbers are positions within it.
        settings: Of them, `drop_last`.
        batch_size: Rows in a batch, of all processes together.
        shuffle: A new permutation each epoch, otherwise 0, 1, 2, ...
        seed: With the epoch, it alone decides the order; no global stream is drawn from.
        sampler: Yields row numbers instead.
        batch_sampler: Yields lists of row numbers instead, as they are.
    """

    def __init__(
        self,
        part: Part,
        settings: LoaderSettings,
        batch_size: int,
        shuffle: bool,
        seed: int,
        sampler: MakeSampler | None = None,
        batch_sampler: MakeSampler | None = None,
    ) -> None:
        self.part = part
        self.batch_size = batch_size
        self.drop_last = settings.drop_last
        self.shuffle = shuffle
        self.seed = seed
        self.make_sampler = batch_sampler or sampler
        self.yields_batches = batch_sampler is not None
        self._drawing = Generator()  # seeded anew for each order
        self._orders: dict[tuple[int, int], Tensor] = {}  # by rows and epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch; a `TypeError` says that the sampler has no length."""
        if self.make_sampler is None:
            return num_batches(len(self.part), self.batch_size, self.drop_last)
        length = len(self._sampler(0))  # type: ignore[arg-type]
        return length if self.yields_batches else num_batches(length, self.batch_size, self.drop_last)

    def batches(self, epoch: int, start: int, at_once: int = 1) -> Iterator[Tensor]:
        """Yield the row numbers of each batch, int64 [batch_size], from batch number `start` on.

        Args:
            epoch: Counted from 0.
            start: Counted from 0.
            at_once: Yield the rows of so many batches together. Only where no sampler decides.
        """
        if self.make_sampler is not None:
            yield from islice(self._sampled(epoch), start, None)
            return
        num_rows = len(self.part)
        end = num_rows - num_rows % self.batch_size if self.drop_last else num_rows
        order = self._shuffled(epoch, num_rows) if self.shuffle else None
        size = self.batch_size * at_once
        for first in range(start * self.batch_size, end, size):
            last = min(first + size, end)
            if isinstance(order, Tensor) and last - first == num_rows:
                yield order
            else:
                yield torch.arange(first, last) if order is None else order[first:last]

    def _shuffled(self, epoch: int, num_rows: int) -> Tensor | Permutation:
        if num_rows > MAX_DRAWN_ROWS:
            return Permutation(num_rows, counted_seed(ORDER_STREAM, self.seed, epoch))
        num_orders = min(ORDERS_AT_ONCE, ROWS_AT_ONCE // max(1, num_rows))
        if num_orders <= 1:
            return self._draw(epoch, num_rows)
        if (num_rows, epoch) not in self._orders:
            epochs = range(epoch, epoch + num_orders)
            self._orders = {(num_rows, each): self._draw(each, num_rows) for each in epochs}
        return self._orders.pop((num_rows, epoch))  # whoever reads rows may write into their numbers

    def _draw(self, epoch: int, num_rows: int) -> Tensor:
        self._drawing.manual_seed(counted_seed(ORDER_STREAM, self.seed, epoch))
        return torch.randperm(num_rows, generator=self._drawing)

    def _sampler(self, epoch: int) -> Iterable[Any]:
        assert self.make_sampler is not None
        seed = counted_seed(ORDER_STREAM, self.seed, epoch)
        with forked_rng(seed):
            sampler = self.make_sampler(self.part, Generator().manual_seed(seed))
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        return sampler

    def _sampled(self, epoch: int) -> Iterator[Tensor]:
        drawn = _drawn(self._sampler(epoch), counted_seed(ORDER_STREAM, self.seed, epoch), self.batch_size)
        for chunk in drawn:
            if self.yields_batches:
                yield from (torch.as_tensor(rows) for rows in chunk)
            elif len(chunk) == self.batch_size or not self.drop_last:
                yield torch.as_tensor(chunk)


class Keys:
    """What the DataLoader takes for a sampler: (epoch, rows) of each batch from `position` on."""

    def __init__(self, order: RowOrder, share: Share) -> None:
        self.order = order
        self.share = share
        self.position = (0, 0, 0)
        self.pending: deque[tuple[Tensor, int, int]] = deque()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        epoch, start, seen = self.position
        self.pending.clear()
        for entry in shared_rows(self.order.batches(epoch, start), self.share, seen):
            self.pending.append(entry)
            yield epoch, entry[0].numpy()  # a tensor would travel through shared memory, at ten times the cost


def _drawn(source: Iterable[Any], seed: int, size: int) -> Iterator[list[Any]]:
    """Yield the items of `source` in lists of `size`; what it draws from the global streams it draws from its own."""
    state: dict[str, Any] = {}
    items: Iterator[Any] | None = None
    while True:
        with forked_rng(seed if not state else None):
            if state:
                set_rng_state(state)
            items = items if items is not None else iter(source)
            chunk = list(islice(items, size))
            state = {**rng_state(), "cuda": []}
        if not chunk:
            return
        yield chunk


def num_batches(num_rows: int, batch_size: int, drop_last: bool) -> int:
    """Return how many batches `num_rows` make."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def check_order(part: Part, settings: LoaderSettings, has_sampler: bool, has_batch_sampler: bool) -> None:
    """Refuse options of which each decides the order.

    Raises:
        ConfigError: Names them, and which to leave out.
    """
    where = f"loader ({part.name})"
    if has_sampler and has_batch_sampler:
        raise ConfigError(f"{where}: sampler and batch_sampler exclude each other; keep one")
    chosen = "batch_sampler" if has_batch_sampler else "sampler" if has_sampler else None
    if chosen and settings.shuffle:
        raise ConfigError(f"{where}: {chosen} decides the order; leave out shuffle: true")
    if has_batch_sampler and settings.drop_last:
        raise ConfigError(f"{where}: batch_sampler decides what a batch is; leave out drop_last: true")
    if part.is_iterable and (chosen or settings.shuffle):
        raise ConfigError(
            f"{where}: dataset {part.dataset_name} is iterable, in its own order; leave out {chosen or 'shuffle: true'}"
        )


def check_not_empty(batches: Sized, part: Part, settings: LoaderSettings, batch_size: int) -> None:
    """Refuse an epoch of no batch, where the data have a length.

    Raises:
        DataError: Names part, rows and what left them out.
    """
    try:
        count = len(batches)
    except TypeError:
        return
    if count == 0:
        why = f", batch_size {batch_size}, drop_last" if settings.drop_last else ""
        raise DataError(
            f"{part.name}: {len(part)} rows{why}: 0 batches"
            + ("; use a smaller loader.batch_size or loader.drop_last=false" if settings.drop_last else "")
        )
