"""How many workers read ahead, where that is to be found out: `loader.num_workers: auto`."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from typing import Any

MEASURED_S = 2.0
MEASURED_BATCHES = 3
"""What is looked at: so long, and so many batches at least. The first of a pass is left out: it opens files."""
WORTH_SHARE = 0.1
"""Of the time, reading must take so much before workers are started."""
log = logging.getLogger(__name__)


class WorkerChoice:
    """Measures how long this process reads and how long it does something else, and chooses a number of workers.

    Batches are the same bits with any number of workers, so they can be started between any two batches.

    Args:
        name: Of the part.
        is_open: Whether there is something to choose.
    """

    def __init__(self, name: str, is_open: bool) -> None:
        self.name, self.is_open = name, is_open
        self.num_workers = 0
        """What was chosen, once it is no longer open."""
        self._reading_s = self._other_s = 0.0
        self._num_batches = 0

    def measured(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield `batches`, until they end or the choice is made."""
        clock, is_first = time.perf_counter, True
        began_s = clock()
        for batch in batches:
            read_s = clock()
            yield batch
            now_s = clock()
            if not is_first:
                self._count(read_s - began_s, now_s - read_s)
                if not self.is_open:
                    return
            began_s, is_first = now_s, False

    def _count(self, reading_s: float, other_s: float) -> None:
        self._reading_s += reading_s
        self._other_s += other_s
        self._num_batches += 1
        total_s = self._reading_s + self._other_s
        if total_s < MEASURED_S or self._num_batches < MEASURED_BATCHES:
            return
        self.is_open = False
        self.num_workers = workers_for(self._reading_s, self._other_s, usable_cores())
        log.info(
            "%s: loader.num_workers: auto chose %d: reading took %.0f %% of %.1f s, on %d cores",
            self.name, self.num_workers, 100 * self._reading_s / total_s, total_s, usable_cores(),
        )  # fmt: skip


def workers_for(reading_s: float, other_s: float, num_cores: int) -> int:
    """Return how many workers read as fast as batches are used; one core is left for the process that trains."""
    if reading_s < WORTH_SHARE * (reading_s + other_s) or num_cores < 2:
        return 0
    return min(math.ceil(reading_s / other_s) if other_s > 0 else num_cores, num_cores - 1)


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
