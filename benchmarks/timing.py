"""Comparing two ways to do the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Work = Callable[[], float]
"""Does the whole work once, and returns the seconds of what is compared (not of what was prepared for it)."""
Seconds = tuple[float, float]
"""By the clock, and of this process's CPU time, in which waiting does not count."""


def clocks() -> Seconds:
    """Return the time now."""
    return time.perf_counter(), time.process_time()


def since(started: Seconds) -> Seconds:
    """Return the seconds since then."""
    now = clocks()
    return now[0] - started[0], now[1] - started[1]


@dataclass
class Stopwatch:
    """Seconds spent inside the `with` blocks of `measured`."""

    cpu_s: float = 0.0
    wall_s: float = 0.0


@contextmanager
def measured() -> Iterator[Stopwatch]:
    """Measure a block: process CPU time and wall time."""
    watch = Stopwatch()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield watch
    watch.cpu_s, watch.wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        work: What is done.
        hand: What it is compared with.
        goal: Ratio, or seconds where `by_hand_s` is empty, that it should not exceed.
        ours_s: Seconds of each round.
        by_hand_s: Seconds of each round, interleaved with ours.
        count: Steps (or other units) in a round.
        unit: What is counted.
        note: What else one must know to read the figure.
    """

    work: str
    hand: str
    goal: float
    ours_s: list[float]
    by_hand_s: list[float] = field(default_factory=list)
    count: int = 1
    unit: str = "run"
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours by hand, round by round; seconds where there is nothing to compare with."""
        if not self.by_hand_s:
            return self.ours_s
        return [ours / hand for ours, hand in zip(self.ours_s, self.by_hand_s, strict=True)]

    @property
    def figure(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the goal, as printed."""
        return round(self.figure, 2) <= self.goal


def interleave(ours: Work, hand: Work, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both, done in turn after one round that does not count."""
    ours(), hand()
    pairs = [(ours(), hand()) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
