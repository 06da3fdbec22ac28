"""What the sections `data.split` and `loader` of a config may say.

No torch here: a config is checked before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

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

    groups: str | None = None
    """Column or attribute of the dataset: rows of one value (a patient, a user) stay in one part."""

    time: str | None = None
    """Column or attribute of the dataset, numbers or dates: the latest rows test, those before them validate."""

    stable: bool = False
    """Each row goes by a hash of its group or content alone: rows that are added later move none. Shares only."""

    folds: Annotated[int, AtLeast(0)] = 0
    """Divide into so many folds; one is held out in place of `test`, or of `val` if there is no `test`."""

    fold: Annotated[int, AtLeast(1)] = 1
    """Which of the folds is held out."""

    seed: Annotated[int, Between(0, 2**32)] = 0
    """Which rows go where. Independent of the run's own seed."""

    @property
    def fold_part(self) -> str:
        """The part that a fold is held out as."""
        return "test" if self.test else "val"

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts besides `train`."""
        shares = {"val": self.val, "test": self.test}
        return tuple(name for name, share in shares.items() if share or (self.folds and name == self.fold_part))

    @property
    def method(self) -> str:
        """The key that says what the split goes by."""
        return next((key for key in ("stratify", "groups", "time", "stable") if getattr(self, key)), "seed")

    @property
    def source(self) -> str:
        """What of the dataset the split goes by."""
        return "targets" if self.stratify else self.groups or self.time or "content"

    def contradictions(self) -> list[tuple[str, str]]:
        """Return what excludes each other, as (key, message)."""
        chosen = [key for key in ("stratify", "groups", "time") if getattr(self, key)]
        wrong = [(key, f"the split goes by `{chosen[0]}` already; leave one out") for key in chosen[1:]]
        if self.stable and (self.stratify or self.time):
            wrong.append(("stable", f"the split goes by `{chosen[0]}` already; leave one out"))
        wrong += [
            (key, f"with `stable` a share below 1 is needed, found {share:g}")
            for key, share in (("val", self.val), ("test", self.test))
            if self.stable and share >= 1
        ]
        if self.folds == 1:
            wrong.append(("folds", "2 or more are needed, found 1"))
        if self.folds and self.time:
            wrong.append(("folds", "the split goes by `time`: in folds, later rows would train for earlier ones"))
        if 1 < self.folds < self.fold:
            wrong.append(("fold", f"1 to {self.folds} is needed, found {self.fold}"))
        return wrong


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
    """Component that yields lists of row numbers, instead of `batch_size`, `shuffle`, `sampler` and `drop_last`.
    An argument `sampler` is filled in: it gives all rows in a new order each epoch."""

    collate_fn: str | None = None
    """Function that makes a batch of a list of samples, e.g. `text.pad` in `src/data/text.py`."""

    num_workers: Annotated[int, AtLeast(0)] | Literal["auto"] = 0
    """Processes that read ahead; 0 reads in the training process. `auto` measures how long that takes, for 2 s, then
    starts as many as keep up, between two batches: they are the same bits. The log tells how many."""

    pin_memory: bool | None = None
    """Page-locked batches, so that copies to a GPU overlap with work; nothing on the CPU. Default: on with CUDA."""

    keep_on_device: bool | None = None
    """Keep the data in the GPU's memory, and shuffle and transform them there. Default: where whole batches are read
    without workers and the data take at most a quarter of what is free."""

    timeout: Annotated[float, AtLeast(0)] = 300.0
    """Seconds to wait for a worker's batch. Then the workers are started again, twice in an epoch, before the run ends
    with an error; 0 waits for ever."""

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
