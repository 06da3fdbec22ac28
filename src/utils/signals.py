"""Stopping a program in good order when it is asked to, or when its time is up."""

from __future__ import annotations

import math
import os
import signal
import time
from types import FrameType
from typing import Any

SECOND_PRESS_S = 5.0
"""A second Ctrl-C within this time leaves at once."""
ASKING = {each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")}
"""Signals that ask to stop, as far as the system has them. SLURM sends SIGUSR1 when asked to warn."""


class Stopped(Exception):
    """Something was left before its end, because the program was asked to stop."""


class StopSignals:
    """Within the `with` block, signals that ask to stop only set `received`; the loop stops where it is safe.

    A second SIGINT within 5 s raises `KeyboardInterrupt` at once. Processes forked inside the block (loader workers)
    do nothing on these signals: their parent ends them. A SIGHUP that `nohup` ignores stays ignored.

    Args:
        limit_s: Time after which to behave as on SIGTERM, early by twice the longest time between two looks at
            `received`: what was slowest so far still fits in, and so does the last save.
    """

    def __init__(self, limit_s: float = math.inf) -> None:
        self.reason = ""
        """What asked to stop."""
        self._received: int | None = None
        self._received_at = 0.0
        self._looked_at = time.monotonic()
        self._deadline = self._looked_at + limit_s
        self._longest_s = 0.0
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        """SIGINT after Ctrl-C, SIGTERM after any other request to stop, else None."""
        if self._deadline < math.inf and self._received is None:
            now = time.monotonic()
            self._longest_s = max(self._longest_s, now - self._looked_at)
            self._looked_at = now
            if now + 2 * self._longest_s >= self._deadline:
                self._received, self.reason = int(signal.SIGTERM), "trainer.max_time, which is nearly over"
        return self._received

    def __enter__(self) -> StopSignals:
        try:
            for number in ASKING:
                if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        except ValueError:  # not in the main thread, where Python allows no handlers
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        meaning = int(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        is_second = meaning == signal.SIGINT == self._received and time.monotonic() - self._received_at < SECOND_PRESS_S
        self._received, self.reason = meaning, signal.Signals(number).name
        self._received_at = time.monotonic()
        if is_second:
            raise KeyboardInterrupt
