"""Batches of a part, in this process or read ahead by workers: the same bits either way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch

from src.data.loading.ahead import pinned, sent_ahead
from src.data.loading.choose_workers import WorkerChoice
from src.data.loading.order import Keys, MakeSampler, RowOrder, check_not_empty, check_order, num_batches
from src.data.loading.resident import ResidentPart, choose_resident
from src.data.loading.share import WHOLE, Share, SharedBatch, shared_rows
from src.data.loading.stream import PartStream
from src.data.loading.worker import (
    PartReader,
    WorkerLoader,
    WorkerStart,
    end_with,
    end_workers,
    identity,
    starting_workers,
    time_limit,
    usable_workers,
    wait_for_batch,
    worker_error,
)
from src.data.parts.part import LOADER_STREAM, Collate, Part
from src.data.settings import LoaderSettings
from src.utils.errors import ConfigError, KeelError, WorkerError
from src.utils.seed import mix_seed
from src.utils.signals import Stopped

MAX_RESTARTS = 2
"""How often lost workers are started again in an epoch."""
log = logging.getLogger(__name__)


class Loader:
    """Yields the batches of a part, from any batch of any epoch.

    A batch depends on (seed, epoch, batch number) and on nothing else: not on the number of workers, not on where
    reading started, not on what the training process drew. The global random streams are left alone.

    Args:
        part: What to read.
        settings: The section `loader` of a config. Of its components, those below are the built forms.
        shuffle: Draw a new order each epoch. Iterable data keep their own.
        seed: The run's seed.
        pin_memory: Make batches in page-locked memory.
        sampler: Makes, from (part, generator), an iterable of positions within the part.
        batch_sampler: Makes, from (part, generator), an iterable of lists of positions.
        collate_fn: Makes a batch of a list of samples; drawing random numbers is allowed.
        worker_init_fn: Called with the worker's number when it starts.
        share: Which rows of every batch are read here. Unless it is all of them, `batches` yields a `SharedBatch`.
        device: With a memory of its own, to which batches are sent ahead; the data may live there. Default: batches
            stay on the host.

    Raises:
        ConfigError: Options exclude each other.
        DataError: An epoch would have no batch.
    """

    is_asked_to_stop: Callable[[], bool] = staticmethod(bool)
    """Asked every now and then while a worker is waited for."""

    def __init__(
        self,
        part: Part,
        settings: LoaderSettings,
        *,
        shuffle: bool,
        seed: int,
        pin_memory: bool = False,
        sampler: MakeSampler | None = None,
        batch_sampler: MakeSampler | None = None,
        collate_fn: Collate | None = None,
        worker_init_fn: Callable[[int], Any] | None = None,
        share: Share = WHOLE,
        device: torch.device | None = None,
    ) -> None:
        check_order(part, settings, sampler is not None, batch_sampler is not None)
        if not (share.is_whole or settings.in_order):
            raise ConfigError(f"loader ({part.name}): in_order: false, and several processes must agree on an order")
        self.part = part
        self.settings = settings
        self.seed = seed
        self.pin_memory = pin_memory
        self.share = share
        self._device = device
        self.batch_size = settings.batch_size * share.count
        """Rows in a batch, of all processes together."""
        self._seen = (0, 0, 0)
        self._collate = collate_fn
        self._start_worker = WorkerStart(worker_init_fn)
        self._choice = WorkerChoice(part.name, is_open=settings.num_workers == "auto" and not part.is_iterable)
        self.num_workers = usable_workers(part, 0 if settings.num_workers == "auto" else settings.num_workers)
        """Processes that read ahead."""
        self._order: RowOrder | None = None
        self._stream: PartStream | None = None
        if part.is_iterable:
            self._stream = PartStream(part, self.batch_size, settings.drop_last, collate_fn, share)
        else:
            self._order = RowOrder(part, settings, self.batch_size, shuffle, seed, sampler, batch_sampler)
        self._keys = Keys(self._order, share) if self._order is not None else None
        self._order_is_ours = sampler is None and batch_sampler is None
        self.has_one_size = collate_fn is None and batch_sampler is None
        """Whether all batches, but the last of an epoch, are of the same shapes."""
        self._torch_loader: WorkerLoader | None = None
        check_not_empty(self, part, settings, self.batch_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch; a `TypeError` says that the data have no length."""
        if self._order is not None:
            return len(self._order)
        return num_batches(len(self.part), self.batch_size, self.settings.drop_last)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Yield the batches of `epoch`, beginning with number `start`.

        Rows before it are not read, except by iterable datasets without `seek`.

        Raises:
            DataError: A row cannot be read; the message names it.
            WorkerError: A worker died or did not answer in time, more often than is forgiven.
            Stopped: A worker was waited for, and `is_asked_to_stop` said so.
        """
        if self._resident is not None:
            return self._batches(epoch, start)
        batches = (self._measured if self._choice.is_open else self._batches)(epoch, start)
        batches = map(pinned, batches) if self.pin_memory else batches
        return batches if self._device is None else sent_ahead(batches, self._device)

    def _measured(self, epoch: int, start: int) -> Iterator[Any]:
        for batch in self._choice.measured(self._batches(epoch, start)):
            start += 1
            yield batch
        if not self._choice.is_open:
            self.num_workers, self._torch_loader = self._choice.num_workers, None
            yield from self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Return what yields the batches, with no call of ours in between."""
        seen = self._seen[2] if self._seen[:2] == (epoch, start) else 0
        part, order = self.part, self._order
        if self._resident is not None and order is not None and not seen:
            return (self._resident.read(epoch, rows) for rows in order.batches(epoch, start))
        if self.num_workers:
            return self._through_torch_patiently(epoch, start, seen)
        if self._stream is not None:
            return self._stream.batches(epoch, start)
        assert order is not None
        if seen or not self.share.is_whole:
            shares = shared_rows(order.batches(epoch, start), self.share, seen)
            return (self._wrapped(part.read(epoch, rows, self._collate), *counts) for rows, *counts in shares)
        if self._batches_at_once == 1:
            return (part.read(epoch, rows, self._collate) for rows in order.batches(epoch, start))
        return chain.from_iterable(self._slices(order, epoch, start))

    def _slices(self, order: RowOrder, epoch: int, start: int) -> Iterator[Iterator[Any]]:
        """Yield batches, some at a time: they are read together."""
        skipped = start % self._batches_at_once  # of a resume: slices must lie in memory as they did
        for rows in order.batches(epoch, start - skipped, self._batches_at_once):
            read = self.part.read(epoch, rows)
            slices = zip(*(tensor.split(self.settings.batch_size) for tensor in read), strict=True)
            yield islice(map(type(read), slices), skipped, None)
            skipped = 0

    def skip_rows(self, epoch: int, start: int, num_rows: int) -> None:
        """Leave out so many rows of batch `start` of `epoch`: they were trained on in batches of another size.

        Raises:
            ConfigError: The dataset is iterable; only whole batches of it can be skipped.
        """
        if self._stream is not None and num_rows:
            raise ConfigError(
                f"loader.batch_size: {self.part.name} is iterable, and {num_rows} rows of its next batch are done; go "
                "on with the global batch of the run, or from the end of an epoch"
            )
        self._seen = (epoch, start, num_rows)

    def _wrapped(self, batch: Any, num_own: int, num_rows: int) -> Any:
        return batch if self.share.is_whole else SharedBatch(batch, num_own, num_rows)

    @cached_property
    def _resident(self) -> ResidentPart | None:
        """The part on the device. Made when the first batch is read: until then the dataset may learn from its rows."""
        if self._device is None or not self.share.is_whole:
            return None
        wanted, is_collated = self.settings.keep_on_device, self._collate is not None
        return choose_resident(self.part, self._device, wanted, self.num_workers, is_collated)

    @cached_property
    def _batches_at_once(self) -> int:
        """Return how many small batches are read together and then sliced; 1 where each must be read by itself."""
        if self._collate is not None or not self._order_is_ours:
            return 1
        return min(len(self), self.part.batches_at_once(self.settings.batch_size))

    def rows(self, epoch: int, first: int, count: int) -> list[list[int]] | None:
        """Return which rows of the dataset are read here for `count` batches from number `first` on.

        None for iterable data.
        """
        if self._order is None:
            return None
        ids = self.part.row_ids()
        own = shared_rows(self._order.batches(epoch, first), self.share, 0)
        return [ids[rows].tolist() for rows, _, _ in islice(own, count)]

    def peek(self, num_rows: int) -> Any:
        """Return a batch of the first rows, at most `num_rows`, read in this process, as the first epoch has them."""
        num_rows = min(num_rows, self.settings.batch_size)
        if self.part.is_iterable:
            return next(PartStream(self.part, num_rows, False, self._collate).batches(0, 0))
        return self.part.read(0, torch.arange(min(num_rows, len(self.part))), self._collate)

    def _through_torch_patiently(self, epoch: int, start: int, seen: int) -> Iterator[Any]:
        """Start the workers again where they were, when one is lost; but not for ever."""
        next_batch, restarts_left = start, MAX_RESTARTS if self.settings.in_order else 0
        while True:
            try:
                for batch in self._through_torch(epoch, next_batch, seen if next_batch == start else 0):
                    next_batch += 1
                    yield batch
            except WorkerError as error:
                if restarts_left == 0:
                    raise
                restarts_left -= 1
                log.warning("%s\nthe workers are started again at batch %d of the epoch", error, next_batch)
            else:
                return

    def _through_torch(self, epoch: int, start: int, seen: int) -> Iterator[Any]:
        if self._torch_loader is None:
            self._torch_loader = self._make_torch_loader()
            end_with(self, self._torch_loader)
        skipped = 0
        if self._keys is not None:
            self._keys.position = (epoch, start, seen)
        else:
            assert self._stream is not None
            skipped = start if self.num_workers > 1 else 0  # each worker has a share: none knows the whole order
            self._stream.position.copy_(torch.tensor([epoch, start - skipped]))
        self._torch_loader.generator.manual_seed(mix_seed(LOADER_STREAM, self.seed, epoch))
        with starting_workers():
            batches = iter(self._torch_loader)
        yield from islice(self._received(batches), skipped, None)

    def _received(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = wait_for_batch(batches, self.settings.timeout, self.is_asked_to_stop)
            except StopIteration:
                return
            except (KeelError, Stopped):
                self._torch_loader = None  # the next epoch starts others
                end_workers(batches)
                raise
            except (RuntimeError, TimeoutError, ConnectionError, EOFError) as error:
                raise self._lost(batches, error) from error
            if self._keys is not None:
                _, num_own, num_rows = self._keys.pending.popleft()
                batch = self._wrapped(batch, num_own, num_rows)
            yield batch

    def _lost(self, batches: Iterator[Any], error: Exception) -> Exception:
        told = worker_error(error, getattr(batches, "_workers", ()), self.part.name, self._awaited_rows())
        self._torch_loader = None
        end_workers(batches)
        return told

    def _awaited_rows(self) -> list[int] | None:
        """Return the rows of the batch that comes next, if they are known."""
        if self._keys is None or not self._keys.pending or not self.settings.in_order:
            return None
        return list(self.part.row_ids()[self._keys.pending[0][0]].tolist())

    def _make_torch_loader(self) -> WorkerLoader:
        settings, workers = self.settings, self.num_workers
        return WorkerLoader(
            self._stream if self._stream is not None else PartReader(self.part, self._collate),
            batch_size=None,  # a key is a whole batch
            sampler=self._keys,
            num_workers=workers,
            collate_fn=identity,
            pin_memory=self.pin_memory,
            timeout=time_limit(settings.timeout) if workers else 0,
            worker_init_fn=self._start_worker,
            multiprocessing_context=settings.multiprocessing_context if workers else None,
            generator=torch.Generator(),  # its own: without one, each epoch draws from the run's stream
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=bool(workers) and settings.persistent_workers is not False,
            in_order=settings.in_order,
        )
