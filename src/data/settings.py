"""What the sections `data.split` and `loader` of a config may say.

No torch here: a config is checked before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from src.utils.bounds import AtLeast, Between


@dataclass(frozen=True)
class SplitSettings:
    """How one dataset is divided into parts; what is left over trains."""

    val: Annotated[float, AtLeast(0)] = 0.0
    """Rows held out for validation: a share below 1, or a whole number of rows."""

    test: Annotated[float, AtLeast(0)] = 0.0
    """Rows held out for testing: a share below 1, or a whole number of rows."""

    stratify: bool = False
    """Give every part the same mix of classes; the dataset must offer `targets`."""

    seed: Annotated[int, Between(0, 2**32)] = 0
    """Which rows go where. Independent of the run's own seed."""


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are read. Every option of `torch.utils.data.DataLoader` is here under its own name."""

    batch_size: Annotated[int, AtLeast(1)] = 32
    """Rows in a batch."""

    shuffle: bool | None = None
    """Draw a new order each epoch. Default: for `train` only."""

    drop_last: bool = False
    """Leave out the last batch of an epoch when it is smaller than `batch_size`."""

    sampler: Any = None
    """Component that yields row numbers: `{type: WeightedRandomSampler, args: {weights: [...], num_samples: 100}}`."""

    batch_sampler: Any = None
    """Component that yields lists of row numbers, instead of `batch_size`, `shuffle`, `sampler` and `drop_last`."""

    collate_fn: str | None = None
    """Function that makes a batch of a list of samples, e.g. `text.collate` in `src/data/text.py`."""

    num_workers: Annotated[int, AtLeast(0)] = 0
    """Processes that read ahead; 0 reads in the training process."""

    pin_memory: bool | None = None
    """Page-locked batches, so that copies to a GPU overlap with work. Default: on when the device is CUDA."""

    timeout: Annotated[float, AtLeast(0)] = 300.0
    """Seconds to wait for a worker's batch before the run ends with an error; 0 waits for ever."""

    worker_init_fn: str | None = None
    """Function called with the worker's number when it starts."""

    prefetch_factor: Annotated[int, AtLeast(1)] | None = None
    """Batches each worker reads ahead. Default: 2 when there are workers."""

    persistent_workers: bool | None = None
    """Keep workers alive between epochs. Default: on when there are workers."""

    multiprocessing_context: str | None = None
    """How workers start: `fork`, `spawn` or `forkserver`."""

    in_order: bool = True
    """Deliver batches in the order of the sampler; switching it off gives up exact resume."""
