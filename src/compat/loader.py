"""Their loader as the training loop knows one. It is iterated as their loop did: it draws from the run's own streams.

So the order of rows, and with it every weight, is that of their loop from the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.utils.seed import forked_rng, rng_state, set_rng_state


class TheirLoader(Loader):
    """Yields the batches of a loader that was built by the project.

    Args:
        name: `train` or `val`.
        loader: Anything that can be iterated again and again, usually a `DataLoader`.
    """

    def __init__(self, name: str, loader: Any) -> None:
        self.loader = loader
        self.num_workers = getattr(loader, "num_workers", 0)
        self.part = Part(name, getattr(loader, "dataset", loader))
        self._epoch_start = rng_state()
        self.batch_size = None  # type: ignore[assignment]  # nobody knows for sure: places are counted in their batches
        self.batches_per_s: float | None = None
        """How fast the newest whole pass was, all that was done with its batches included."""

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Yield the batches from number `start` on; those before it are read again as they were, and left out."""
        del epoch
        now = rng_state()
        if start == 0:
            self._epoch_start = now
            started_s = time.perf_counter()
            count = 0
            for count, batch in enumerate(self.loader, start=1):  # noqa: B007
                yield batch
            self.batches_per_s = count / (time.perf_counter() - started_s)
            return
        set_rng_state(self._epoch_start)
        batches = iter(self.loader)
        for _ in islice(batches, start):
            pass
        set_rng_state(now)
        yield from batches

    def peek(self, num_rows: int) -> Any:
        """Return the first rows of a batch, leaving the streams as they were."""
        with forked_rng():
            batch = next(iter(self.loader))
        return [part[:num_rows] for part in batch] if isinstance(batch, (list, tuple)) else batch

    @property
    def num_rows(self) -> int | None:
        """Rows of an epoch, None when nobody knows."""
        try:
            return len(self.loader.sampler)
        except (AttributeError, TypeError):
            return None

    def state_dict(self) -> dict[str, Any]:
        """Where the streams were when the epoch in progress began."""
        return {"epoch_start": self._epoch_start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch_start = state["epoch_start"]
