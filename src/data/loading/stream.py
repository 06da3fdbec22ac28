"""Reading iterable data: samples come in the dataset's own order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from src.data.loading.share import WHOLE, Share, SharedBatch
from src.data.loading.worker import failure
from src.data.parts.part import BATCH_STREAM, ROW_STREAM, Collate, Part, row_seed
from src.utils.seed import forked_rng, mix_seed, seed_host


class PartStream(IterableDataset[Any]):
    """The batches of an iterable part, read in this process or in a worker.

    Sample k of an epoch is read with the random streams seeded by (seed, epoch, k), so that random samples are the
    same in every process and after `seek`. Each of several processes reads all samples and keeps its share of a batch.
    """

    def __init__(
        self, part: Part, batch_size: int, drop_last: bool, collate: Collate | None, share: Share = WHOLE
    ) -> None:
        self.part = part
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.collate = collate
        self.share = share
        self.position = torch.zeros(2, dtype=torch.int64)  # (epoch, start), seen by living workers too
        self.position.share_memory_()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches from `position` on; the last one is a `Failure` if reading failed."""
        epoch, start = self.position.tolist()
        try:
            yield from self.batches(epoch, start)
        except Exception as error:
            yield failure(error, self.part)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield the batches of `epoch` from number `start` on.

        Raises:
            DataError: The dataset, a transform or the collation failed.
        """
        dataset: Any = self.part.dataset
        worker = get_worker_info()
        shard = worker.id if worker is not None else 0
        first = start * self.batch_size
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        if hasattr(dataset, "seek"):
            dataset.seek(first)
            number = first
        else:
            number = 0
            if first:
                logging.getLogger(__name__).info(
                    "%s: reading %d samples to get to batch %d; a method seek(num_samples) of %s would skip them",
                    self.part.name, first, start, self.part.dataset_name,
                )  # fmt: skip
        with forked_rng(mix_seed(BATCH_STREAM, self.part.seed, epoch, shard)):
            samples = iter(dataset)
        sample_seed = mix_seed(ROW_STREAM, self.part.seed, epoch, shard)
        while True:
            with forked_rng():
                chunk = self._read(samples, sample_seed, number)
                numbers = range(number, number + len(chunk))
                if number < first or not chunk or (self.drop_last and len(chunk) < self.batch_size):
                    batch = None
                else:
                    seed_host(mix_seed(BATCH_STREAM, self.part.seed, epoch, shard, number))
                    batch = self._collated(chunk, numbers)
            if batch is not None:
                yield batch
            if len(chunk) < self.batch_size:
                return
            number += len(chunk)

    def _collated(self, chunk: list[Any], numbers: range) -> Any:
        if self.share.is_whole:
            return self.part.collated(chunk, self.collate, numbers)
        first, end = self.share.bounds(len(chunk))
        own = slice(first, end) if end > first else slice(0, 1)
        batch = self.part.collated(chunk[own], self.collate, numbers[own])
        return SharedBatch(batch, end - first, len(chunk))

    def _read(self, samples: Iterator[Any], seed: int, first: int) -> list[Any]:
        chunk: list[Any] = []
        for number in range(first, first + self.batch_size):
            seed_host(row_seed(seed, number))
            try:
                chunk.append(self.part.transformed(next(samples)))
            except StopIteration:
                break
            except Exception as error:
                raise self.part.error_at([number], error) from error
        return chunk
