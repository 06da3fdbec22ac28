"""A part of the data (train, val, test_noisy, ...): rows of a dataset and what is done to each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from src.data.loading.collate import collate_samples
from src.data.on_array import as_transform
from src.utils.command import shortage
from src.utils.errors import DataError, KeelError, WorkerError
from src.utils.seed import forked_rng, mix_seed, seed_host

Collate = Callable[[list[Any]], Any]

ROW_STREAM, BATCH_STREAM, ORDER_STREAM, LOADER_STREAM = range(4)
"""First number of every seed drawn in this room, so that rows, batches and orders never share a stream."""
SLICED_BYTES = 1 << 18
"""Read at once at most, to be sliced into batches: what fits into a processor's cache."""
ALIGNMENT = 64
"""Bytes: torch's own tensors begin at multiples of it."""
SHARED_MEMORY_IS_FULL = "shared memory is full: see `df /dev/shm`; use fewer loader.num_workers, or docker's --shm-size"


class Part:
    """Named rows of a dataset, each read with its own random stream: the same whoever reads it, and when.

    Args:
        name: `train`, `val`, `test`, `val_noisy`, ...
        dataset: Any `torch.utils.data.Dataset`; `src/data/__init__.py` lists what it may offer beyond that.
        indices: Row numbers of the dataset that belong to this part, int64 [rows]. None means all.
        transforms: Called in turn on the inputs: the first element of a tuple or list, else the whole sample.
        seed: Seed of everything random in a row: row 57 of epoch 3 draws the same numbers in every process.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset[Any],
        indices: Tensor | None = None,
        transforms: Sequence[Callable[[Any], Any]] = (),
        seed: int = 0,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.indices = indices
        self.transforms = tuple(map(as_transform, transforms))
        self.seed = seed
        self.is_iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        batchwise = all(getattr(transform, "takes_batch", False) for transform in self.transforms)
        self._read_batch = _batch_reader(dataset) if batchwise else None
        self._is_sliceable = self._read_batch is not None and type(dataset) is TensorDataset
        """Whether reading many batches at once and slicing gives what reading each gives."""
        self._draws = not batchwise  # whether reading a row draws random numbers; found out while it does not

    def __len__(self) -> int:
        """Return the number of rows; a `TypeError` says that the data have no length."""
        return len(self.indices) if self.indices is not None else len(self.dataset)  # type: ignore[arg-type]

    @property
    def reads_batches(self) -> bool:
        """Whether rows are read and transformed many at once."""
        return self._read_batch is not None

    def batches_at_once(self, batch_size: int) -> int:
        """Return how many batches of so many rows are best read together and then sliced; 1 where they cannot be.

        Slices must begin where fresh tensors do, or the processor adds in another order and the last bits differ.
        """
        if not self._is_sliceable:
            return 1
        row = self.read(0, [0])
        if type(row) not in (tuple, list) or not all(isinstance(value, Tensor) for value in row):
            return 1
        sizes = [value.nbytes * batch_size for value in row]
        is_aligned = all(size % ALIGNMENT == 0 for size in sizes)
        return max(1, SLICED_BYTES // max(1, sum(sizes))) if is_aligned else 1

    def row_ids(self) -> Tensor:
        """Return the row numbers within the dataset, int64 [rows]."""
        return self.indices if self.indices is not None else torch.arange(len(self))

    def targets(self) -> Tensor:
        """Return the targets of this part's rows, for samplers and class weights.

        Raises:
            DataError: The dataset has no attribute `targets`.
        """
        targets = getattr(self.dataset, "targets", None)
        if targets is None:
            raise DataError(f"{self.name}: dataset {self.dataset_name} offers no `targets`; add that attribute")
        targets = torch.as_tensor(targets)
        return targets if self.indices is None else targets[self.indices]

    @property
    def dataset_name(self) -> str:
        return type(self.dataset).__name__

    def read(self, epoch: int, rows: Tensor | Sequence[int], collate: Collate | None = None) -> Any:
        """Return the batch of `rows` (positions within the part, 0 to len - 1) as it is in `epoch`.

        A dataset with `read_batch` answers at once, as long as every transform takes batches. Otherwise samples
        are read one by one. If that draws random numbers, python's, numpy's and torch's streams are seeded for each
        by (seed, epoch, row number in the dataset); the caller's streams are left as they were.

        Raises:
            DataError: A row, a transform or the collation failed; the message names the row.
        """
        ids = torch.as_tensor(rows)
        ids = ids if self.indices is None else self.indices[ids]
        if self._read_batch is not None and collate is None:
            try:
                return self.transformed(self._read_batch(ids))
            except Exception as error:
                raise self.error_at(ids.tolist(), error) from error
        numbers = ids.tolist()
        if not self._draws:
            before = _host_streams()
            try:
                batch = self.collated(self._read_samples(numbers), collate, numbers)
            finally:
                self._draws = _put_back(before)
            if not self._draws:
                return batch  # otherwise once more, with a stream for each row
        batch_seed = mix_seed(BATCH_STREAM, self.seed, epoch, *numbers[:1])
        with forked_rng(batch_seed):
            samples = self._read_samples(numbers, mix_seed(ROW_STREAM, self.seed, epoch))
            seed_host(batch_seed)
            return self.collated(samples, collate, numbers)

    def _read_samples(self, numbers: list[int], seed: int | None = None) -> list[Any]:
        """Return rows `numbers` of the dataset, transformed; each is seeded by `seed` and its number, if given."""
        fetch_many = getattr(self.dataset, "__getitems__", None)
        samples: Sequence[Any] = ()
        if fetch_many:
            try:
                samples = fetch_many(numbers)
            except Exception as error:
                raise self.error_at(numbers, error) from error
        done = []
        for position, number in enumerate(numbers):
            if seed is not None:
                seed_host(row_seed(seed, number))
            try:
                sample = samples[position] if fetch_many else self.dataset[number]
                done.append(self.transformed(sample) if self.transforms else sample)
            except Exception as error:
                raise self.error_at([number], error) from error
        return done

    def transformed(self, sample: Any) -> Any:
        """Return `sample` with the transforms applied to its inputs."""
        if not self.transforms:
            return sample
        if not isinstance(sample, (tuple, list)):
            return self._apply(sample)
        first = self._apply(sample[0])
        if isinstance(sample, tuple) and hasattr(sample, "_replace"):
            return sample._replace(**{sample._fields[0]: first})  # type: ignore[attr-defined]
        return type(sample)((first, *sample[1:]))

    def _apply(self, value: Any) -> Any:
        for transform in self.transforms:
            try:
                value = transform(value)
            except KeelError:
                raise
            except Exception as error:
                if shortage(error):
                    raise
                name = getattr(transform, "__name__", type(transform).__name__)
                raise DataError(f"transform {name}: {type(error).__name__}: {error}") from error
        return value

    def collated(self, samples: list[Any], collate: Collate | None, numbers: Sequence[int]) -> Any:
        """Return `samples`, which are rows `numbers`, as one batch."""
        try:
            return (collate or collate_samples)(samples)
        except Exception as error:
            raise _size_error(self, samples, numbers) or self.error_at(numbers, error) from error

    def error_at(self, numbers: Sequence[int], error: Exception) -> Exception:
        """Return what a user is told when `error` came up while reading rows `numbers` of the dataset."""
        if shortage(error) or (isinstance(error, KeelError) and not isinstance(error, DataError)):
            return error
        if "unable to allocate shared memory" in str(error):  # what workers hand batches over in
            return WorkerError(f"{self.name} {shown_rows(numbers)}: {SHARED_MEMORY_IS_FULL}")
        reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        if isinstance(error, IndexError) and hasattr(self.dataset, "__len__"):
            reason += f"; the dataset says that it has {len(self.dataset)} rows"
        return DataError(f"{self.name} {shown_rows(numbers)} (dataset {self.dataset_name}): {reason}")


def _host_streams() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _put_back(before: tuple[Any, Any, Tensor]) -> bool:
    """Return whether the global streams were drawn from since `before`; if so, they are as they were then."""
    python, numpy, host = _host_streams()
    same_numpy = numpy[2:] == before[1][2:] and np.array_equal(numpy[1], before[1][1])
    if python == before[0] and same_numpy and torch.equal(host, before[2]):
        return False
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    return True


def row_seed(seed: int, number: int) -> int:
    """Return the 32-bit seed of row `number`: the finalizer of MurmurHash3, ten times as fast as `mix_seed`."""
    mixed = (seed ^ number * 0x9E3779B1) & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return mixed ^ mixed >> 16


def shown_rows(numbers: Sequence[int]) -> str:
    """Return row numbers as text, at most the first five."""
    if not numbers:
        return "rows without numbers"
    listed = ", ".join(str(number) for number in numbers[:5])
    return f"row{'' if len(numbers) == 1 else 's'} {listed}{', ...' if len(numbers) > 5 else ''}"


def _batch_reader(dataset: Dataset[Any]) -> Callable[[Tensor], Any] | None:
    """Return what reads many rows of `dataset` at once, if there is such a thing."""
    if type(dataset) is TensorDataset:
        return partial(_tensor_rows, dataset.tensors)
    return getattr(dataset, "read_batch", None)


def _tensor_rows(tensors: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    return [tensor.index_select(0, rows) for tensor in tensors]


def _size_error(part: Part, samples: list[Any], numbers: Sequence[int]) -> DataError | None:
    """Return the error for inputs of different shapes in one batch, if that is what is wrong."""
    inputs = [sample[0] if isinstance(sample, (tuple, list)) and sample else sample for sample in samples]
    shapes = [tuple(value.shape) if hasattr(value, "shape") else None for value in inputs]
    for number, shape in zip(numbers, shapes, strict=True):
        if shape != shapes[0] and shape is not None and shapes[0] is not None:
            return DataError(
                f"{part.name} rows {numbers[0]} and {number} (dataset {part.dataset_name}): sizes "
                f"{list(shapes[0])} and {list(shape)} in one batch; add the transform Resize, or a loader.collate_fn"
            )
    return None
